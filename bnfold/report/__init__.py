"""The record of a command, and its renderings."""
