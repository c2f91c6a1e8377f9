"""Selections: which tokens a head keeps, given how many."""
