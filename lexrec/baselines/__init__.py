"""Counting baselines: no gradient, the same protocol."""
