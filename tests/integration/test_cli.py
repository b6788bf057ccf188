"""The dispatcher, run as a process on real verb files: the shipped ones, and some written here."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lexrec as package
from lexrec.commands import __main__ as cli

VERB = """
HELP = "Say something {n}."


def add_arguments(parser):
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out")


def run(args):
{body}
"""

BODIES = {
    "show": "print(args.recipe, args.out, args.overrides)\nreturn 0",
    "refuse": "from lexrec.errors import DataError\nraise DataError(\"events.csv: no column\\n  'item'\")",
    "crash": 'raise RuntimeError("a bug")',
    "interrupt": "raise KeyboardInterrupt",
    "wait": 'import time\nprint("ready", flush=True)\ntime.sleep(60)\nreturn 0',
    "shout": 'for _ in range(100_000):\n    print("a long line that fills the pipe")\nreturn 0',
    "seven": "return 7",
    "local": "import my_component\nprint(my_component.NAME)\nreturn 0",
}

SUBVERBS = """
HELP = "A verb with verbs of its own."


def add_arguments(parser):
    inner = parser.add_subparsers(dest="action", required=True)
    pull = inner.add_parser("pull")
    pull.add_argument("names", nargs="+")
    pull.add_argument("--out")


def run(args):
    print(args.action, args.names, args.out)
    return 0
"""


@pytest.fixture(scope="session")
def verb_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    for n, (name, body) in enumerate(BODIES.items()):
        indented = "\n".join(f"    {line}" for line in body.splitlines())
        (folder / f"{name}.py").write_text(VERB.format(n=n, body=indented))
    (folder / "group.py").write_text(SUBVERBS)
    (folder / "_private.py").write_text("1 / 0")
    return folder


@pytest.fixture
def command(verb_folder) -> list[str]:
    """The start of a command line of the dispatcher that also finds the verbs of this file."""
    code = (
        f"import sys, lexrec.commands as c; c.__path__.append({str(verb_folder)!r});"
        "from lexrec.commands.__main__ import main; sys.exit(main())"
    )
    return ["-c", code]


@pytest.fixture
def with_verbs(python, command):
    return lambda *words: python(*command, *words)


def test_help_lists_every_verb_with_its_line(with_verbs):
    done = with_verbs("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for n, name in enumerate(BODIES):
        assert any(line.split() == [name, "Say", "something", f"{n}."] for line in done.stdout.splitlines())
    assert "_private" not in done.stdout


def test_every_shipped_verb_is_listed_and_explains_itself(lexrec):
    overview = lexrec("--help").stdout
    assert cli.verbs()
    for verb in cli.verbs():
        assert f"\n  {verb} " in overview
        done = lexrec(verb, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: lexrec {verb}")


def test_help_imports_nothing_heavy(python):
    done = python(
        "-c",
        "import sys\n"
        "from lexrec.commands.__main__ import main\n"
        "main(['--help'])\n"
        "print('HEAVY', sorted({'torch', 'ibis', 'duckdb', 'pyarrow', 'pandas', 'rich'} & set(sys.modules)))",
    )
    assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr


def test_version(lexrec):
    done = lexrec("--version")
    assert (done.returncode, done.stdout) == (0, f"lexrec {package.__version__}\n")


def test_without_a_verb_the_overview_goes_to_stderr_and_fails(lexrec):
    done = lexrec()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: lexrec")


def test_unknown_verb_suggests_the_closest(with_verbs):
    done = with_verbs("shwo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lexrec: error: no verb 'shwo' (did you mean show?); verbs: ")
    assert "interrupt" in done.stderr


def test_unknown_front_option_is_refused(with_verbs):
    done = with_verbs("--jsno", "show")
    assert done.returncode == 2
    assert "unrecognized arguments: --jsno" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["sasrec", "a.b=1", "c=2", "--out", "x"],
        ["sasrec", "--out", "x", "a.b=1", "c=2"],
        ["--out", "x", "sasrec", "a.b=1", "c=2"],
        ["sasrec", "a.b=1", "--out", "x", "c=2"],
    ],
)
def test_overrides_may_stand_anywhere(with_verbs, words):
    done = with_verbs("show", *words)
    assert (done.stdout, done.stderr) == ("sasrec x ['a.b=1', 'c=2']\n", "")


def test_a_verb_may_have_verbs_of_its_own(with_verbs):
    assert with_verbs("group", "pull", "a", "b", "--out", "x").stdout == "pull ['a', 'b'] x\n"


def test_debug_may_follow_a_sub_verb(with_verbs):
    assert with_verbs("group", "pull", "a", "--debug").stdout == "pull ['a'] None\n"


def test_wrong_usage_exits_2_and_shows_the_usage(with_verbs):
    done = with_verbs("show", "--nope", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: lexrec show")


def test_options_are_never_guessed_from_a_prefix(with_verbs):
    assert with_verbs("show", "--ou", "x").returncode == 2


def test_an_error_is_one_line(with_verbs):
    done = with_verbs("refuse")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lexrec: error: events.csv: no column 'item'\n"


@pytest.mark.parametrize("words", [["--debug", "refuse"], ["refuse", "--debug"]])
def test_debug_shows_the_traceback_before_the_line(with_verbs, words):
    done = with_verbs(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("\nlexrec: error: events.csv: no column 'item'\n")


def test_a_bug_is_not_hidden(with_verbs):
    done = with_verbs("crash")
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr


def test_the_verbs_exit_code_is_the_commands(with_verbs):
    assert with_verbs("seven").returncode == 7


def test_keyboard_interrupt_exits_130_without_a_traceback(with_verbs):
    done = with_verbs("interrupt")
    assert (done.returncode, done.stderr) == (130, "")


def test_interrupt_signal_exits_130(command, root):
    process = subprocess.Popen(
        [sys.executable, *command, "wait"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (130, "")


def test_a_reader_that_goes_away_is_no_error(command, root):
    process = subprocess.Popen(
        [sys.executable, *command, "shout"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    complaint = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), complaint) == (141, b"")


def test_a_component_beside_the_user_is_found(with_verbs, tmp_path):
    (tmp_path / "my_component.py").write_text("NAME = 'mine'\n")
    assert with_verbs("local").stdout == "mine\n"


def test_main_takes_words_and_returns_the_code(capsys):
    assert cli.main(["no-such-verb"]) == 2
    assert "no verb 'no-such-verb'" in capsys.readouterr().err


def test_the_public_names_are_what_the_overview_promises():
    assert set(dir(package)) >= {"prepare", "train", "evaluate", "Recommender", "Dataset", "TokenTable"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
