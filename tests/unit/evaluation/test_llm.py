"""A language model asked over real sockets: a server that speaks the protocol stands in for it."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest
from worlds import world

from lexrec.baselines.popularity import Popularity, PopularityConfig
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, DataError, RunError
from lexrec.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate
from lexrec.evaluation.llm import ANSWERS, LlmConfig, chosen, evaluate_llm

N, SETTINGS = 20, EvaluationConfig(pool=9, k=(1,))
ASKING = LlmConfig(max_retries=1, concurrency=3)
TITLES = ["Red Nail Polish", "Nail Polish", "12 Monkeys", "Seven", "Babe"]


class Endpoint:
    """Answers chat completions with what `say` makes of the last message."""

    def __init__(self, say: Callable[[str], str | None]) -> None:
        self.say, self.asked = say, []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append((self.path, self.headers["Authorization"], body))
                said = endpoint.say(body["messages"][-1]["content"])
                message = {"role": "assistant", "content": said}
                reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                data = json.dumps(reply | {"choices": [choice]} if said is not None else {"error": "no"})
                self.send_response(400 if said is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data.encode())))
                self.end_headers()
                self.wfile.write(data.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], str | None]], Endpoint]]:
    running: list[Endpoint] = []

    def start(say: Callable[[str], str | None]) -> Endpoint:
        running.append(Endpoint(say))
        port = running[-1].server.server_address[1]
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        return running[-1]

    yield start
    for endpoint in running:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def films(n_users: int = 12) -> Dataset:
    dataset = world([[(u * 7 + t) % N + 1 for t in range(5)] for u in range(n_users)], n_items=N)
    titles = [f"Part {'I' * i}" for i in range(1, N + 1)]
    dataset.tables["items"] = dataset.tables["items"].append_column("title", pa.array(titles))
    return dataset


def next_part(prompt: str) -> str:
    """What comes after the newest title: the right answer in `films`."""
    past, candidates = prompt.split("Candidates")
    newest = len(re.findall(r"^- Part (I+)$", past, re.MULTILINE)[-1])
    found = re.search(rf"^(\d+)\. Part {'I' * (newest % N + 1)}$", candidates, re.MULTILINE)
    assert found
    return found[1]


def test_a_model_that_knows_the_next_title_is_always_right(serve, tmp_path: Path) -> None:
    endpoint, dataset = serve(next_part), films()
    result = evaluate_llm("clever", dataset, SETTINGS, out=tmp_path, asking=ASKING)
    assert result.metrics["hr@1"] == 1
    assert result.metrics["no_candidate@1"] == 0
    path, key, body = endpoint.asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("clever", 0, 16)
    assert len(re.findall(r"^\d+\. Part I+$", body["messages"][-1]["content"], re.MULTILINE)) == 10
    assert Evaluation.load(tmp_path).rank_E.tolist() == [1] * 12
    popularity = evaluate(Popularity(PopularityConfig()).fit(dataset), dataset, EvaluationConfig(pool=9))
    result.protocol.require_alike(popularity.protocol)


def test_places_tell_nothing(serve, tmp_path: Path) -> None:
    serve(lambda prompt: "1")
    result = evaluate_llm("first", films(60), SETTINGS, out=tmp_path, asking=ASKING)
    assert 0 < result.metrics["hr@1"] < 0.3


def test_the_history_is_the_newest_titles_before_the_target(serve, tmp_path: Path) -> None:
    endpoint = serve(lambda prompt: "1")
    asking = ASKING.model_copy(update={"max_len": 2})
    evaluate_llm("m", films(1), SETTINGS, out=tmp_path, asking=asking)
    past = endpoint.asked[0][2]["messages"][-1]["content"].split("Candidates")[0]
    assert re.findall(r"^- (.*)$", past, re.MULTILINE) == ["Part III", "Part IIII"]


def test_answers_that_name_no_candidate_are_misses_and_counted(serve, tmp_path: Path) -> None:
    serve(lambda prompt: "I cannot help with that." if "- Part III\n" in prompt else next_part(prompt))
    result = evaluate_llm("shy", films(), SETTINGS, out=tmp_path, asking=ASKING)
    n_shy = result.metrics["no_candidate@1"] * 12
    assert 0 < n_shy < 12
    assert result.metrics["hr@1"] == pytest.approx(1 - n_shy / 12)


def test_a_run_that_broke_off_asks_only_what_is_missing(serve, tmp_path: Path) -> None:
    dataset, left = films(), [5]

    def failing(prompt: str) -> str | None:
        left[0] -= 1
        return next_part(prompt) if left[0] >= 0 else None

    asking = ASKING.model_copy(update={"concurrency": 1})
    serve(failing)
    with pytest.raises(
        RunError, match=r"fails for model 'm': .*; answers so far are kept in .*answers\.jsonl"
    ):
        evaluate_llm("m", dataset, SETTINGS, out=tmp_path, asking=asking)
    kept = (tmp_path / ANSWERS).read_text()
    assert len(kept.splitlines()) == 5
    (tmp_path / ANSWERS).write_text(kept + '{"key": "cut o')
    endpoint = serve(next_part)
    assert evaluate_llm("m", dataset, SETTINGS, out=tmp_path, asking=asking).metrics["hr@1"] == 1
    assert len(endpoint.asked) == 7
    evaluate_llm("m", dataset, SETTINGS, out=tmp_path, asking=asking)
    assert len(endpoint.asked) == 7
    evaluate_llm("another", dataset, SETTINGS, out=tmp_path, asking=asking)
    assert len(endpoint.asked) == 19


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        *(("2", 1), ("2.", 1), ("**2**. Nail Polish", 1), ("The answer is 3", 2), ("Candidate #4: Seven", 3)),
        *(("nail polish", 1), ("I would pick Babe!", 4), ("12 Monkeys", 2), ("Perhaps number 5?", 4)),
        *(("", None), ("6", None), ("0", None), ("none of these", None), ("Seven or Babe", None)),
        *(("2 or maybe it", 1), ("between 2 and 3", None), ("babel", None)),
    ],
)
def test_what_an_answer_names(answer: str, place: int | None) -> None:
    assert chosen(answer, TITLES) == place


def test_two_candidates_of_one_title_are_told_apart_by_number_alone() -> None:
    assert chosen("Babe", ["Babe", "Seven", "Babe"]) is None
    assert chosen("3", ["Babe", "Seven", "Babe"]) == 2


def test_what_cannot_be_asked_is_refused(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(next_part)
    plain = world([[1, 2, 3, 4]], n_items=N)
    with pytest.raises(
        DataError, match="no item titles to show a language model; prepare it again with --items"
    ):
        evaluate_llm("m", plain, SETTINGS, out=tmp_path)
    with pytest.raises(ConfigError, match=r"names one candidate of a pool: pool=None, k=\[1\]; give a pool"):
        evaluate_llm("m", films(), EvaluationConfig(k=(1,)), out=tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="no key for the endpoint; set OPENAI_API_KEY"):
        evaluate_llm("m", films(), SETTINGS, out=tmp_path)
    (tmp_path / ANSWERS).write_text("[]\n")
    with pytest.raises(RunError, match=r"answers\.jsonl is damaged: .*; delete it to ask again"):
        evaluate_llm("m", films(), SETTINGS, out=tmp_path)
