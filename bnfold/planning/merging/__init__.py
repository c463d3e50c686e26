"""Merges parallel linear branches, and linear operators in a row, into one."""
