"""The forms in which kept tokens are held."""
