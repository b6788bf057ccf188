"""File formats a token table is read from: each lists a file's tensors without reading them."""
