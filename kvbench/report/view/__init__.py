"""The viewer: one HTML file to look at stored runs in a browser, without a server and without network.

`tables` arranges the numbers of runs, `answers` packs their records, and `page` writes the file from the templates in
`assets/`.
"""
