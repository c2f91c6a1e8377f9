"""Tables and figures from stored runs. Reads the store only, never a model: no torch, no transformers."""
