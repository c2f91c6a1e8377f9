"""The states of runs and plans, from the files alone. Imports no torch, writes nothing."""
