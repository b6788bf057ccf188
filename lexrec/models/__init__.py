"""Sequence models: one readable file each."""
