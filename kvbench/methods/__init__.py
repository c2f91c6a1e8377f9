"""Compression methods: small pure parts (score, layers, heads, select, store, decode) that a YAML composes.

Importing this package does not import torch; the parts do. See `kvbench.methods.base` for the contract.
"""
