"""The command line: one verb a file, a table of verbs, no logic."""
