"""Where a token table's bytes come from: hub, package index, file."""
