"""The command line: one verb a file, no logic. The files of this folder are the table of verbs.

A verb's module has `HELP`, one line; `add_arguments(parser)`; and `run(args)`, which returns the
exit code. It imports what is heavy inside `run`: `lexrec --help` imports every verb.
"""
