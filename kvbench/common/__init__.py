"""Small helpers without a room of their own. Standard library only."""
