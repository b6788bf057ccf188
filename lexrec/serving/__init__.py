"""From external ids to recommendations."""
