"""A language model behind an OpenAI-compatible endpoint, asked which title of a small pool comes next.

It sees the newest titles of a history and the pool's titles under numbers, in an order drawn for each event,
and names one. What it names is ranked first; an answer that names no candidate is a miss and is counted. So
only metrics at 1 have a meaning. Answers are kept as they come: asked again, nothing is paid for twice.

Dimension key: E events, P candidates of a pool besides the target.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from lexrec.config import Config
from lexrec.data.dataset import Dataset
from lexrec.errors import ConfigError, DataError, RunError
from lexrec.evaluation.evaluate import (
    Evaluation,
    EvaluationConfig,
    Questions,
    of_ranks,
    protocol_of,
    questions,
)
from lexrec.evaluation.events import Split

ANSWERS = "answers.jsonl"
_TASK = "You predict what a person picks next. Answer with the number of one candidate and nothing else."


class LlmConfig(Config):
    """How a language model is asked."""

    max_len: int = Field(20, ge=1)
    """Newest titles of a history that it is shown."""
    max_tokens: int = Field(16, ge=1)
    """Longest answer, in its tokens."""
    concurrency: int = Field(8, ge=1)
    """Requests under way at once."""
    max_retries: int = Field(5, ge=0)
    """Tries again after a failed request, with growing pauses."""


class Question(NamedTuple):
    """One event as a model is asked it."""

    messages: list[dict[str, str]]
    titles: tuple[str, ...]
    """Of the candidates, in the order shown."""
    right: int
    """Place of the target among them."""


def evaluate_llm(
    model: str,
    dataset: Dataset,
    settings: EvaluationConfig,
    *,
    out: str | Path,
    split: Split = "test",
    asking: LlmConfig | None = None,
) -> Evaluation:
    """Ask a model for the next item of every event.

    Args:
        model: its name at the endpoint; where and with which key is said by OPENAI_BASE_URL, OPENAI_API_KEY.
        dataset: with item titles.
        settings: `pool` is needed; `sample` keeps it cheap; k is 1.
        out: folder of the answers (answers.jsonl) and the result. Given again, only what is missing is asked.
        split: the part to measure.
        asking: how to ask.

    Returns:
        hr@1, and no_candidate@1: the share of answers that name no candidate.

    Raises:
        ConfigError: no pool, a k besides 1, no key, or the openai package is not installed.
        DataError: the data set has no titles, or a user has met too much for a pool.
        RunError: the endpoint fails for good. Answers so far are kept.
    """
    asking = asking or LlmConfig()
    if settings.pool is None or settings.k != (1,):
        raise ConfigError(
            f"a language model names one candidate of a pool: pool={settings.pool}, k={list(settings.k)}; "
            "give a pool and k=1"
        )
    title_I = _titles(dataset)
    asks = questions(dataset, split, settings)
    asked_E = list(_questions(dataset, asks, title_I, settings.pool_seed, asking.max_len))
    answer_E = _answers(model, [question.messages for question in asked_E], Path(out), asking)
    chosen_E = [chosen(answer, question.titles) for answer, question in zip(answer_E, asked_E, strict=True)]
    is_right_E = [choice == question.right for choice, question in zip(chosen_E, asked_E, strict=True)]
    rank_E = np.where(is_right_E & asks.is_candidate_I[asks.events.target_E], 1.0, np.inf)
    result = of_ranks(protocol_of(dataset, split, settings, asks), rank_E, dataset, asks.events)
    none = sum(choice is None for choice in chosen_E) / len(chosen_E)
    result = replace(result, metrics=result.metrics | {"no_candidate@1": none})
    result.save(out)
    return result


def chosen(answer: str, titles: Sequence[str]) -> int | None:
    """Which candidate an answer names: a title, the number it starts with, the only title or number in it.

    Args:
        answer: what the model said.
        titles: of the candidates, shown under 1, 2, ...

    Returns:
        Its place from 0; None where the answer names none, or several.
    """
    said, names = _plain(answer), [_plain(title) for title in titles]
    if names.count(said) == 1:
        return names.index(said)
    number = re.match(
        r"\W*(?:(?:the|answer|is|number|candidate|option|item)\W+)*(\d+)\b", answer, re.IGNORECASE
    )
    if number and 1 <= int(number[1]) <= len(titles):
        return int(number[1]) - 1
    inside = [i for i, name in enumerate(names) if name and re.search(rf"\b{re.escape(name)}\b", said)]
    if len(inside) == 1:
        return inside[0]
    numbers = {int(text) for text in re.findall(r"\b\d{1,6}\b", answer)} & set(range(1, len(titles) + 1))
    return numbers.pop() - 1 if len(numbers) == 1 and not inside else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _titles(dataset: Dataset) -> list[str]:
    """Of each item index; the id where a title is missing."""
    table = dataset.item_table
    if "title" not in table.column_names or not any(table["title"].to_pylist()):
        raise DataError(
            "this data set has no item titles to show a language model; "
            "prepare it again with --items FILE --title COLUMN"
        )
    rows = zip(table["title"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    return ["", *(" ".join(str(title or id_).split()) for title, id_ in rows)]


def _questions(
    dataset: Dataset, asks: Questions, title_I: Sequence[str], seed: int, max_len: int
) -> Iterator[Question]:
    events, _, item_EP = asks
    assert item_EP is not None
    for event in range(len(events)):
        end = int(events.end_E[event])
        start = max(int(events.start_E[event]), end - max_len)
        items = np.append(events.target_E[event], item_EP[event])
        # Not the pool's own draw again: the order would follow from it.
        order = np.random.default_rng([seed, end, 1]).permutation(len(items))
        titles = tuple(title_I[item] for item in items[order])
        history = [title_I[item] for item in dataset.item_N[start:end]]
        yield Question(_messages(history, titles), titles, int(np.flatnonzero(order == 0)[0]))


def _messages(history: Sequence[str], titles: Sequence[str]) -> list[dict[str, str]]:
    past = "\n".join(f"- {title}" for title in history) or "(nothing yet)"
    candidates = "\n".join(f"{number}. {title}" for number, title in enumerate(titles, 1))
    text = (
        f"A person picked these, oldest first:\n{past}\n\nCandidates for the next pick:\n{candidates}\n\n"
        f"Which one comes next? Answer with its number, 1 to {len(titles)}."
    )
    return [{"role": "system", "content": _TASK}, {"role": "user", "content": text}]


def _answers(model: str, prompts: Sequence[Any], folder: Path, asking: LlmConfig) -> list[str]:
    """One answer a prompt, from the file where it is there already."""
    key_E = [_key(model, messages, asking.max_tokens) for messages in prompts]
    path = folder / ANSWERS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _read(path)
        missing = {key: messages for key, messages in zip(key_E, prompts, strict=True) if key not in known}
        if missing:
            with path.open("a", encoding="utf-8") as file:
                for key, answer in _ask_all(model, missing, asking, path):
                    known[key] = answer
                    file.write(json.dumps({"key": key, "model": model, "answer": answer}) + "\n")
                    file.flush()
    except OSError as error:
        raise RunError(f"cannot keep answers in {path}: {error.strerror or error}") from error
    return [known[key] for key in key_E]


def _ask_all(model: str, prompts: dict[str, Any], asking: LlmConfig, path: Path) -> Iterator[tuple[str, str]]:
    """Answers as they come, several requests under way at once."""
    try:
        import openai
    except ImportError as error:
        raise ConfigError(
            "asking a language model needs the package openai; pip install 'lexrec[llm]'"
        ) from error
    try:
        client = openai.OpenAI(max_retries=asking.max_retries)
    except openai.OpenAIError as error:
        raise ConfigError(
            "no key for the endpoint; set OPENAI_API_KEY (any text for a server of your own) and, unless "
            "it is OpenAI's, OPENAI_BASE_URL"
        ) from error

    def ask(messages: Any) -> str:
        reply = client.chat.completions.create(
            model=model, messages=messages, temperature=0.0, max_tokens=asking.max_tokens
        )
        return (reply.choices[0].message.content or "") if reply.choices else ""

    with client, ThreadPoolExecutor(asking.concurrency) as pool:
        key_of = {pool.submit(ask, messages): key for key, messages in prompts.items()}
        try:
            for future in as_completed(key_of):
                yield key_of[future], future.result()
        except openai.OpenAIError as error:
            why = " ".join(str(error).split())
            raise RunError(
                f"{client.base_url} fails for model {model!r}: {why}; answers so far are kept in {path}, "
                "the same command goes on from there"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _key(model: str, messages: Any, max_tokens: int) -> str:
    return hashlib.sha256(json.dumps([model, messages, max_tokens]).encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """Answers kept so far. A last line that a crash cut off is mended away: it would spoil the next one."""
    if not path.exists():
        return {}
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        return {record["key"]: record["answer"] for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}; delete it to ask again") from error
