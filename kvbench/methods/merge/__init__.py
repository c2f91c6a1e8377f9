"""Merges: how kept keys and values take up something of the dropped ones."""
