"""What proves that a result is its original: a certificate, and a checker that believes nobody."""
