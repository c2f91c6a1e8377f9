"""Figures from stored runs. They read the store only, never a model: no torch, no transformers."""
