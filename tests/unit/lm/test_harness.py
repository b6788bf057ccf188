"""lm-eval on a language model: a task of a local file, beside the same worked out by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from lexrec.errors import LmError
from lexrec.lm import loading
from lexrec.lm.harness import TasksConfig, require_harness, run_tasks
from lexrec.lm.settings import LmConfig
from tests.language_models import folder

CHOICES = [["nail polish", "soap brush"], ["blue green", "with children"], ["t40 t41", "t42 t43"]]
QUESTIONS = [{"question": f"t{i} red", "choices": CHOICES[i % 3], "gold": int(i % 3 == 1)} for i in range(12)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


def load(seed: int, **options: object) -> loading.LanguageModel:
    return loading.load(LmConfig(model=str(folder(seed=seed)), **options))


def by_hand(lm: loading.LanguageModel, questions: list[dict]) -> float:
    """Share of questions whose right choice is the likeliest continuation."""
    n_right = 0
    for question in questions:
        before = lm.tokenizer(question["question"])["input_ids"]
        scores = []
        for choice in question["choices"]:
            tokens = lm.tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logit_SV = lm.causal(torch.tensor([before + tokens])).logits[0, len(before) - 1 : -1]
            scores.append(float(logit_SV.log_softmax(-1)[range(len(tokens)), tokens].sum()))
        n_right += scores.index(max(scores)) == question["gold"]
    return n_right / len(questions)


def test_a_task_of_a_local_file_is_answered_as_by_hand(tasks, capsys) -> None:
    lms = [load(0), load(1)]
    found = run_tasks(lms, TasksConfig(tasks=("words",), folder=tasks))
    expected = [by_hand(lm, QUESTIONS) for lm in lms]
    assert [one["words"]["acc"]["value"] for one in found] == pytest.approx(expected)
    assert expected[0] != expected[1]
    assert all(one["words"]["acc"]["stderr"] > 0 for one in found)
    assert capsys.readouterr().out == ""
    (first,) = run_tasks(lms[:1], TasksConfig(tasks=("words",), folder=tasks, limit=3))
    assert first["words"]["acc"]["value"] == pytest.approx(by_hand(lms[0], QUESTIONS[:3]))


def test_frozen_weights_of_half_the_size_with_trained_ones_beside_are_read(tasks) -> None:
    lm = load(0, dtype="bf16")
    lm.train_attention()
    (found,) = run_tasks([lm], TasksConfig(tasks=("words",), folder=tasks))
    assert 0 <= found["words"]["acc"]["value"] <= 1


def test_what_cannot_be_run_is_one_error(tasks) -> None:
    with pytest.raises(LmError, match=r"wrods: no task of lm-eval 0\..* nor a YAML file in "):
        run_tasks([load(0)], TasksConfig(tasks=("words", "wrods"), folder=tasks))
    (tasks / "questions.jsonl").unlink()
    with pytest.raises(LmError, match="lm-eval cannot run words: "):
        run_tasks([load(0)], TasksConfig(tasks=("words",), folder=tasks))
    with pytest.raises(ValidationError, match="tasks"):
        TasksConfig(tasks=())


def test_without_lm_eval_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LmError, match=r"lm-eval, which is missing; pip install 'lexrec\[lm-eval\]'"):
        run_tasks([], TasksConfig(tasks=("hellaswag",)))


def test_offline_the_hub_is_not_asked_for_data(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("LEXREC_OFFLINE", "0")
    require_harness()
    assert not constants.is_offline_mode()
    monkeypatch.setenv("LEXREC_OFFLINE", "1")
    require_harness()
    assert constants.is_offline_mode()
