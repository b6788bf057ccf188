"""Token-embedding tables of language models: known ones, where they come from, and their cache."""
