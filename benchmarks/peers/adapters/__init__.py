"""One file a library. Each is imported only in that library's own environment."""
