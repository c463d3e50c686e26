"""Parallel linear branches, and linear operators in a row, that become one."""
