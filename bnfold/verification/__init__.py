"""Whether two models are equivalent, found by running both on the same inputs."""
