"""Decides what folds where, which linear operators merge, and applies what was decided."""
