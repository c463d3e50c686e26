"""Saved programs, `.pt2` files."""
