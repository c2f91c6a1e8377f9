"""Scores of a predicted text: pure functions of strings, each in [0, 1]."""
