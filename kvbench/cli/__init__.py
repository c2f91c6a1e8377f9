"""The command line: arguments, signals, exit codes, and what is printed at the end."""
