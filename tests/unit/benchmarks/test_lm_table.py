"""The table of IDIOMoE's ablations: every row is a recipe that exists, with the same budget."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lm_table
from lexrec.compare.arms import parse_arm
from lexrec.config import RunConfig, differences, load_recipe, recipe_names
from lexrec.training.rounds import first_config


def arguments(**changed: Any) -> argparse.Namespace:
    given = {"steps": 1000, "batch": 64, "max_len": 20, "evaluate_every": 2, "lm": "gemma3-270m"}
    return argparse.Namespace(**{**given, "dtype": "bf16", "checkpointing": False, **changed})


@pytest.mark.parametrize("name", [name for name, row in lm_table.ROWS.items() if row.has_budget])
def test_every_row_has_the_budget(name: str) -> None:
    config = parse_arm(lm_table.arm(name, arguments())).config(seed=1)
    assert isinstance(config, RunConfig)
    train, n_steps = config.train, config.train.max_steps
    if config.first:
        before = first_config(config)
        assert before.train.max_steps == n_steps == 500
        assert before.model.columns == ()  # type: ignore[attr-defined]
        n_steps = 1000
    assert (n_steps, train.batch_size, config.model.max_len) == (1000, 64, 20)  # type: ignore[attr-defined]
    # The budget alone ends a run.
    assert train.patience >= 500
    assert train.max_epochs >= 500
    if lm_table.ROWS[name].has_lm:
        assert config.model.lm.model == "gemma3-270m"  # type: ignore[attr-defined]
        assert config.model.lm.dtype == "bf16"  # type: ignore[attr-defined]


def test_two_rows_are_trained_as_their_recipes_say() -> None:
    own = [name for name, row in lm_table.ROWS.items() if not row.has_budget]
    assert own == ["sasrec_own", "id_decoder_own"]
    for name in own:
        config, recipe = parse_arm(lm_table.arm(name, arguments())).config(1), load_recipe(name[:-4])
        assert {line.split(":")[0] for line in differences(recipe, config)} == {
            "model.max_len",
            "train.seed",
        }


def test_every_recipe_over_a_language_model_is_a_row() -> None:
    recipes = {row.recipe for row in lm_table.ROWS.values()}
    others = {"idiomoe_mltfr"}  # token tables on top: no row of the paper's
    ours = {n for n in recipe_names() if n.startswith("idiomoe") or n.endswith("_llm")}
    assert {name for name in ours if not name.startswith("idiomoe_ask")} - others <= recipes


def test_rows_are_chosen_by_group_or_by_name() -> None:
    assert lm_table.chosen("mot,moa") == ["mot", "moa"]
    assert set(lm_table.chosen("main")) | set(lm_table.chosen("ablations")) == set(lm_table.chosen("all"))
    with pytest.raises(SystemExit, match="no row mob; known: main, ablations, all, sasrec"):
        lm_table.chosen("mob")


def test_a_row_takes_the_rate_that_validation_picks(tmp_path: Path) -> None:
    for rate, value in (("1e-4", 0.03), ("1e-3", 0.05)):
        run = tmp_path / "arms" / f"mot-lr{rate}" / "seed-1"
        run.mkdir(parents=True)
        (run / "DONE").write_text(json.dumps({"ndcg@10": value}))
    assert lm_table.best_rate("mot", ["1e-4", "3e-4", "1e-3"], tmp_path) == "1e-3"
    assert lm_table.best_rate("sasrec", ["1e-4"], tmp_path) is None
    with pytest.raises(SystemExit, match=r"moa: no run succeeded at any of 1e-4, 1e-3; see .*logs"):
        lm_table.best_rate("moa", ["1e-4", "1e-3"], tmp_path)
    config = parse_arm(lm_table.arm("mot", arguments(), "1e-3")).config(1)
    assert isinstance(config, RunConfig)
    assert config.train.lr == 1e-3
    assert parse_arm(lm_table.arm("mot", arguments(), "1e-3")).name == "mot-lr1e-3"


def test_the_table_says_what_a_row_cost() -> None:
    def metric(mean: float) -> dict[str, Any]:
        return {"mean": mean, "std": 0.001, "values": [mean, mean, mean]}

    metrics = {"ndcg@10": metric(0.05), "hr@10": metric(0.09)}
    cost = {
        "parameters": 79_600_000,
        "parameters_total": 214_000_000,
        "steps": 500,
        "steps_before": 500,
        "tokens": 1_250_000,
        # A step of the first round reads less.
        "flops": {"step": 4 * 10**12, "before": {"step": 2 * 10**12}},
        "seconds": 61.4,
    }
    lines = lm_table.table(
        {"mot": {"metrics": metrics, **cost}, "popularity": {"metrics": metrics}, "torn": {"metrics": {}}}
    ).splitlines()
    assert lines[2] == "| `mot` | 3 | 0.0500 | 0.0010 | 0.0900 | 79.6 | 214.0 | 1,000 | 1.25 | 3.00 | 61 |"
    assert lines[3].startswith("| `popularity` | 3 | 0.0500 | 0.0010 | 0.0900 |")
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 4
    uncounted = lm_table.table({"mot": {"metrics": metrics, **cost, "flops": {"error": "not counted"}}})
    assert uncounted.endswith("| 79.6 | 214.0 | 1,000 | 1.25 |  | 61 |")
