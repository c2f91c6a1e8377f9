"""Many jobs at once: sweeps that share a prefill."""
