"""Probes: forward passes of a method's own, from which scores are made."""
