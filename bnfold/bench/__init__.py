"""How fast models are, beside one another: paired, interleaved timings and what may be concluded from them."""
