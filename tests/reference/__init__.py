"""Naive float64 re-implementations of the method layer, from the papers and reference repositories' rules.

Slow loops on purpose: the tests compare the package with them, so they share no code with it.
`tva` holds the common test vector, whose printed numbers check these oracles themselves.
"""
