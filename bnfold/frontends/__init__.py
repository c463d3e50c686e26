"""Graphs of other libraries, read into the neutral vocabulary."""
