"""`lexrec VERB ...`: find the verb's file, parse its arguments, run it, and say errors in one line.

Exit codes: 0 done, 2 wrong usage or an error lexrec raised on purpose, 130 interrupted,
141 the reader of a pipe went away.
"""

import argparse
import difflib
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from lexrec import __version__, commands
from lexrec.commands._threads import settle_threads
from lexrec.errors import LexrecError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    settle_threads()
    try:
        # Taken out here, so that it may stand anywhere, after a sub-verb too.
        code = _dispatch([word for word in words if word != "--debug"])
        # Output still in the buffer must fail here, where a closed pipe is expected.
        sys.stdout.flush()
    except LexrecError as error:
        if "--debug" in words:
            traceback.print_exc()
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def verbs() -> list[str]:
    """The verbs there are, from the files in lexrec/commands."""
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def _dispatch(words: list[str]) -> int:
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    front, verb, rest = words[:at], words[at : at + 1], words[at + 1 :]
    if {"-h", "--help"} & set(front):
        print(_overview())
        return 0
    _front_parser().parse_args(front)
    if not verb:
        print(_overview(), file=sys.stderr)
        return 2
    return _run(verb[0], rest)


def _run(verb: str, words: list[str]) -> int:
    if verb not in verbs():
        near = difflib.get_close_matches(verb, verbs(), n=1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        _complain(f"no verb {verb!r}{guess}; verbs: {', '.join(verbs())}")
        return 2
    module = importlib.import_module(f"{commands.__name__}.{verb}")
    parser = argparse.ArgumentParser(prog=f"lexrec {verb}", description=module.HELP, allow_abbrev=False)
    module.add_arguments(parser)
    # A component `module:Class` may lie where the command is run. Last, so that it shadows nothing.
    sys.path.append(str(Path.cwd()))
    code: int = module.run(_parse(parser, words))
    return code


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Overrides may stand before, between and after the options; only sub-verbs rule that out."""
    try:
        return parser.parse_intermixed_args(words)
    except TypeError:
        return parser.parse_args(words)


def _front_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lexrec", add_help=False, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lexrec {__version__}")
    return parser


def _overview() -> str:
    width = max((len(verb) for verb in verbs()), default=0)
    lines = [f"  {verb:{width}}  {_help(verb)}" for verb in verbs()]
    return "\n".join(
        [
            "usage: lexrec [--version] [--debug] VERB ...",
            "",
            "Next-item recommendation that brings in what language models know.",
            "",
            *lines,
            "",
            "`lexrec VERB --help` explains one verb; --debug, anywhere, shows the traceback of an error.",
        ]
    )


def _help(verb: str) -> str:
    text: str = importlib.import_module(f"{commands.__name__}.{verb}").HELP
    return text


def _complain(text: str) -> None:
    print(f"lexrec: error: {' '.join(text.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
