"""What the operators of a torch graph are, and what is known of their values."""
