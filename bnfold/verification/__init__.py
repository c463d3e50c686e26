"""Decides whether two models are equivalent, by running both on the same inputs."""
