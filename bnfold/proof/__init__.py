"""Proves that a result is its original: a certificate, and a checker that believes nobody."""
