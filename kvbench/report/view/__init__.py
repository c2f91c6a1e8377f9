"""The viewer: one HTML file to look at stored runs in a browser, without a server and without network.

`reading` reads runs in blocks, `tables` arranges them, `page` writes the file from the templates in `assets/`.
"""
