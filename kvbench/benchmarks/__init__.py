"""Benchmarks: samples of text and the rules that score the answers to them."""
