"""Ranks, metrics of ranks, and the protocol they were measured under."""
