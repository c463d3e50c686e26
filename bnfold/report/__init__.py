"""One record of what was done, and its renderings."""
