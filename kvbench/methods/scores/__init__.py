"""Scores: what a token is worth to a KV head, computed from one layer of the prompt."""
