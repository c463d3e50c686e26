"""Compares the speed of models: paired, interleaved timings, and the conclusions from them."""
