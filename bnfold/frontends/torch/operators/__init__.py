"""Readers of torch operators, and the shapes, types and constants that they need."""
