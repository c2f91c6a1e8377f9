"""Compression methods: small pure parts (score, layers, heads, select, store, decode) that a YAML composes.

`kvbench.methods.base` holds the contract of the parts. Each kind of part has a folder with one file per part.
Importing this package does not import torch; the parts do.
"""
