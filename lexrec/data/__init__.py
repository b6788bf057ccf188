"""Interactions: from any table to a `Dataset`, and from there to a `Batch`."""
