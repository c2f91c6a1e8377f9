"""What is done, running, failed or missing, from the run folders and plans alone. Imports no torch, writes nothing."""
