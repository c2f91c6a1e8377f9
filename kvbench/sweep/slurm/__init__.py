"""Sweeps on a Slurm cluster: one task per group of jobs that share a prefill."""
