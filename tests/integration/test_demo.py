"""`lexrec demo` for real, but small: thirty users, twenty films, tables of noise, two epochs.

The command itself on the real data is what `make demo-fast` runs.
"""

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from lexrec.commands.__main__ import main
from lexrec.config import RunConfig, differences
from lexrec.data.dataset import Dataset
from lexrec.errors import DataError, RunError, TokensError
from lexrec.run_dir import RunDir
from lexrec.serving._demo_print import report, step
from lexrec.serving.demo import ARMS, PLAIN, RANDOM, TOKENS, Demo, demo
from lexrec.training.loop import Trainer
from tests.films import N_FILMS, N_RATINGS, N_USERS, original, ratings, title, write

SMALL = ["model.dim=8", "model.n_layers=1", "model.n_heads=2", "model.max_len=6"]
BRIEF = ["train.max_epochs=2", "train.batch_size=16"]


class World:
    """Where the data lies, which tables there are, and what was said."""

    def __init__(self, folder: Path, like: "World | None" = None) -> None:
        self.data = like.data if like else write(folder / "ml-100k", original())
        self.out = folder / "demo"
        sizes = (("a", 30, 1), ("b", 40, 2))
        self.tables = like.tables if like else [self._table(folder / a, n, seed) for a, n, seed in sizes]
        self.said: list[tuple[str, str]] = []

    @staticmethod
    def _table(folder: Path, rows: int, seed: int) -> str:
        weight_VW = torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))
        folder.mkdir(parents=True)
        save_file({"embed_tokens.weight": weight_VW}, folder / "model.safetensors")
        (folder / "vocab.txt").write_text("".join(f"{folder.name}word{i}\n" for i in range(rows)))
        return f"file:{folder}"

    def run(self, **changes: object) -> Demo:
        self.said = []
        options = {"data_from": self.data, "tables": self.tables, "overrides": [*SMALL, *BRIEF], **changes}
        return demo(self.out, say=lambda *line: self.said.append(line), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def found(world) -> Demo:
    return world.run()


@pytest.fixture(scope="module")
def text(found) -> str:
    return printed(found)


def printed(found: Demo, width: int = 100) -> str:
    file = io.StringIO()
    report(found, Console(file=file, width=width, highlight=False))
    return file.getvalue()


def row(text: str, label: str) -> list[str]:
    """The cells after a label, in the table of results."""
    (line,) = re.findall(rf"^ {re.escape(label)} +(\d.*)$", text.partition("Did the")[0], flags=re.MULTILINE)
    return line.split()


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_number_of_the_table_is_that_of_the_run_directory(found, text, arm):
    path = found.out / "runs" / arm.name
    metrics = json.loads((path / "evaluations" / "test" / "metrics.json").read_text())["metrics"]
    done = json.loads((path / "DONE").read_text())
    cells = row(text, arm.label)
    assert cells[:3] == [f"{metrics[name]:.4f}" for name in ("hr@10", "ndcg@10", "ndcg@20")]
    if arm.name in (PLAIN, TOKENS, RANDOM):
        epochs = f"{done['best_epoch']}/{done['epochs']}"
        assert cells[3:] == [f"{done['parameters']:,}", epochs, f"{done['seconds']:.0f}"]
    else:
        assert cells[3:] == ["counted"]


def test_the_differences_are_those_of_the_table(found, text):
    value = {arm: found.arms[arm].test.metrics["ndcg@10"] for arm in (PLAIN, TOKENS, RANDOM)}
    assert found.over_plain.mean == pytest.approx(value[TOKENS] - value[PLAIN], abs=1e-6)
    assert found.over_random.mean == pytest.approx(value[TOKENS] - value[RANDOM], abs=1e-6)
    answer = text.partition("Did the tokens help?")[2].partition("What SASRec")[0]
    for difference in (found.over_plain, found.over_random):
        assert f"{difference.mean:+.4f}  {difference.low:+.4f} to {difference.high:+.4f}" in answer
    assert "one seed proves nothing" in " ".join(answer.split())
    best = max(found.arms.values(), key=lambda arm: arm.test.metrics["ndcg@10"])
    assert f"The highest NDCG@10 is that of {best.label}" in answer


def test_the_arms_differ_in_what_they_are_called_for_and_in_nothing_else(found):
    plain, tokens, random = (found.arms[name].run.config for name in (PLAIN, TOKENS, RANDOM))
    assert differences(tokens, random) == ["item_encoder.random_seed: None -> 1"]
    changed = {line.partition(":")[0].partition(".")[0] for line in differences(plain, tokens)}
    assert changed == {"item_encoder"}
    assert isinstance(plain, RunConfig)
    assert found.arms[PLAIN].run.summary["parameters"] < found.arms[TOKENS].run.summary["parameters"]


def test_all_arms_were_measured_under_one_protocol_and_chosen_on_validation(found):
    protocols = [arm.test.protocol for arm in found.arms.values()]
    assert {(p.data, p.split, p.seen, p.n_events) for p in protocols} == {
        (found.dataset.fingerprint, "test", "remove", N_USERS)
    }
    assert [p.selected_on for p in protocols] == ["nothing"] * 3 + ["validation"] * 3


def test_people_see_their_own_history_and_what_they_have_not_rated(found, text):
    assert [person.user_id for person in found.people] == [1, 2, 3]
    for person in found.people:
        films = [film for user, film, _ in ratings() if user == person.user_id]
        titles = [f"{title(film)} ({1970 + film})" for film in films]
        assert person.recent == titles[-2:-7:-1]
        assert (person.next_title, person.n_history) == (titles[-1], N_RATINGS - 1)
        assert not set(person.recommended) & set(titles[:-1])
        assert person.leans_on in titles[:-1]
        assert person.n_competing == N_FILMS - (N_RATINGS - 1)
        shown = text.partition(f"User {person.user_id},")[2].partition("\nUser ")[0]
        for film in [*person.recent, *person.recommended, f"{person.next_title}: place {person.rank:g} of"]:
            assert film in shown


def test_the_marked_recommendation_stands_where_the_evaluation_ranked_it(found):
    for person in found.people:
        places = [place for place, hit in enumerate(person.is_next, 1) if hit]
        assert places == ([int(person.rank)] if person.rank <= 5 else [])
        assert [person.recommended[place - 1] for place in places] == [person.next_title] * len(places)


def test_tokens_are_the_tables_own(found, text):
    for person in found.people:
        assert [expert.table for expert in person.experts] == ["a", "b"]
        assert sum(expert.gate for expert in person.experts) == pytest.approx(1)
        for expert in person.experts:
            assert all(token.text.startswith(f"{expert.table}word") for token in expert.tokens)
            assert expert.tokens[0].text in text


def test_it_ends_with_commands_that_work(found, text, capsys):
    commands = [
        line.split() for line in re.findall(r"^  (?:python -m )?\S*lexrec\S* (.*)$", text, flags=re.MULTILINE)
    ]
    assert [words[0] for words in commands] == ["recommend", "explain", "train", "tokens", "prepare"]
    recommend, explain, train = commands[:3]
    assert [main(words) for words in (recommend, explain, [*train, "--quiet"])] == [0, 0, 0]
    printed_too = capsys.readouterr().out
    assert all(said in printed_too for said in ("rank", "Language models", "best epoch"))
    again = RunDir.open(train[train.index("--out") + 1])
    assert differences(found.arms[TOKENS].run.config, again.config) == ["train.seed: 42 -> 2"]


def test_output_is_plain_and_narrow_where_there_is_no_terminal(world, found, text):
    assert "\x1b" not in text
    assert max(map(len, text.partition("All of it took")[0].splitlines())) <= 100
    assert "…" not in printed(found, width=80)
    file = io.StringIO()
    for line in world.said:
        step(Console(file=file, width=100), *line)
    assert "30 users, 20 films, 270 ratings" in " ".join(file.getvalue().split())


def test_run_again_it_reuses_everything(world, found, text):
    before = contents(world.out)
    again = world.run(data_from=None)
    assert contents(world.out) == before
    assert [said for what, said in world.said if what == "SASRec"][-1].endswith("done before")
    assert not [said for _, said in world.said if said.startswith("training")]
    without_seconds = [re.sub(r"All of it took \d+ s", "", page) for page in (text, printed(again))]
    assert without_seconds[0] == without_seconds[1]


def test_a_demo_that_was_interrupted_goes_on_where_it_stopped(world, found, tmp_path, monkeypatch):
    validate, epochs = Trainer._validate, []

    def interrupted(trainer: Trainer, *args: object) -> None:
        epochs.append(trainer.run.path.name)
        if epochs.count(TOKENS) == 2:
            raise KeyboardInterrupt
        validate(trainer, *args)  # type: ignore[arg-type]

    again = World(tmp_path, world)
    monkeypatch.setattr(Trainer, "_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again.run()
    monkeypatch.undo()
    assert not RunDir.reopen(again.out / "runs" / TOKENS).is_done
    done = contents(again.out / "runs" / PLAIN)
    continued = again.run()
    assert contents(again.out / "runs" / PLAIN) == done
    assert [what for what, said in again.said if said.startswith("training")] == [
        "SASRec + MLTFR",
        "SASRec + MLTFR, random",
    ]
    for name in (PLAIN, TOKENS, RANDOM):
        assert continued.arms[name].test.rank_E.tolist() == found.arms[name].test.rank_E.tolist()


def test_other_data_and_other_settings_are_refused(world, found, tmp_path):
    fewer = {**original(), "u.data": b"".join(original()["u.data"].splitlines(keepends=True)[:90])}
    other = write(tmp_path / "other", fewer)
    with pytest.raises(DataError, match=r"was made from other data than .*other; choose another --out"):
        world.run(data_from=other)
    with pytest.raises(RunError, match=r"other settings \(train.lr: 0.002 -> 0.5\); remove it or choose"):
        world.run(overrides=[*SMALL, *BRIEF, "train.lr=0.5"])


def test_the_fast_form_has_runs_of_its_own(world, found):
    before = contents(world.out / "runs")
    fast = world.run(fast=True)
    assert fast.arms[PLAIN].run.path == world.out / "runs-fast" / PLAIN
    assert contents(world.out / "runs") == before
    # The test's own sizes win over those of --fast; what is left is how much of the tables is read.
    slow, quick = (demo.arms[TOKENS].run.config for demo in (found, fast))
    assert differences(slow, quick) == ["item_encoder.max_tokens: 8192 -> 4096"]


def test_without_network_and_cache_one_line_says_what_to_do(lexrec, tmp_path):
    done = lexrec("demo", LEXREC_OFFLINE="1", LEXREC_CACHE=str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "MovieLens-100K cannot be had" in done.stderr
    assert "--data-from FOLDER with u.data and u.item" in done.stderr
    assert "lexrec tokens pull wordllama minilm" in done.stderr
    assert not (tmp_path / "demo").exists()


def test_a_table_that_cannot_be_had_is_said_before_anything_is_trained(world, tmp_path):
    with pytest.raises(TokensError, match="no token table 'nosuch'"):
        demo(tmp_path / "out", data_from=world.data, tables=["nosuch"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data"]
    assert Dataset.load(tmp_path / "out" / "data").n_users == N_USERS


def test_an_out_that_is_a_file_is_refused(world, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        demo(tmp_path / "file", data_from=world.data, tables=world.tables)
