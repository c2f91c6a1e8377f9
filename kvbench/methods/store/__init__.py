"""Stores: the form in which kept tokens are held."""
