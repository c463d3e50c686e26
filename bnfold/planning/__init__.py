"""Decides what folds where and which linear operators merge, and applies the plan."""
