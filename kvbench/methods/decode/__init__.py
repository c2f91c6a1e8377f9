"""Decode policies: what leaves the cache while generating, so that a budget holds all the time."""
