"""Recipes, overrides, and that whatever is wrong is said in one line with the fix."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError, field_validator

from lexrec import config
from lexrec.config import Config, RunConfig, TrainConfig, load_recipe, run_config
from lexrec.errors import ConfigError
from lexrec.models.sasrec import SASRec

SECTIONS = {
    "model": {"name": "sasrec"},
    "item_encoder": {"name": "id_embedding"},
    "objective": {"name": "next_item"},
}


class PickyConfig(Config):
    """A component's config with checks of its own, found below as `module:Class`."""

    name: str = f"{__name__}:Picky"
    even: int = 0
    tables: tuple[str, ...] = ()
    inner: TrainConfig = TrainConfig()

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even, got {value}; for example {value + 1}")
        if value > 100:
            raise ConfigError(f"picky: {value} is more than 100")
        return value


class Picky(SASRec):
    config: PickyConfig


PICKY = f"{__name__}:Picky"


@pytest.fixture(autouse=True)
def plain(tmp_path, monkeypatch) -> Path:
    """A recipe of this file's own, `plain.yaml` in the working folder."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, "plain.yaml", **SECTIONS)


def message(call: Any, *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    assert "pydantic" not in text
    return text


def write(folder: Path, name: str = "mine.yaml", /, **sections: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(sections))
    return path


# Recipes


@pytest.mark.parametrize("name", config.recipe_names())
def test_a_shipped_recipe_survives_being_written_and_read(name):
    one = load_recipe(name)
    again = run_config(yaml.safe_load(yaml.safe_dump(one.model_dump(mode="json"))))
    assert again == one
    assert type(again) is type(one)
    assert config.differences(one, again) == []


def test_the_recipes_that_others_name_are_there():
    assert {"popularity", "markov", "item_knn", "sasrec", "sasrec_mltfr"} <= set(config.recipe_names())


def test_an_unknown_recipe_lists_the_known_ones():
    text = message(load_recipe, "sasrek")
    assert text.startswith("no recipe 'sasrek'; known: ")
    assert ", sasrec, " in text
    assert text.endswith("your own: path/to/recipe.yaml")


def test_a_recipe_file_is_read(tmp_path):
    mine = write(tmp_path, **SECTIONS, train={"lr": 0.5})
    assert load_recipe(mine) == run_config({**SECTIONS, "train": {"lr": 0.5}})
    assert load_recipe(str(mine)) == load_recipe(mine)


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    mine = write(tmp_path, **SECTIONS)
    mine.write_text(mine.read_text(), encoding="utf-8-sig")
    assert isinstance(load_recipe(mine), RunConfig)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"model: \xff\xfe", "is not UTF-8 text; save it as UTF-8"),
        (b"model: [1", "is not YAML"),
        (b"- a\n- b", "a recipe is a mapping of sections, got list"),
        (b"", "a recipe is a mapping of sections, got NoneType"),
        (b"train: {lr: 1}\ntrain: {lr: 2}", "key train is given twice"),
        (b"model: !!python/object:os.system {}", "is not YAML"),
        (b"1: 2", "unknown key '1'; known: first, item_encoder, model, objective, rounds, train"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, complaint):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    text = message(load_recipe, path)
    assert str(path) in text
    assert complaint in text


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert message(load_recipe, tmp_path / "no.yaml").endswith("no.yaml' does not exist")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml' cannot be read: " in message(load_recipe, tmp_path / "folder.yaml")


# extends


def test_extends_merges_key_by_key(tmp_path):
    write(tmp_path, "base.yaml", **SECTIONS, train={"lr": 0.5, "seed": 1})
    mine = write(tmp_path, extends="base.yaml", train={"seed": 2}, model={"dim": 32})
    loaded = load_recipe(mine)
    assert (loaded.train.lr, loaded.train.seed) == (0.5, 2)
    assert loaded.model.model_dump()["dim"] == 32


def test_extends_merges_sections_of_sections(tmp_path):
    inner = {"inner": {"lr": 0.5, "seed": 1}}
    write(tmp_path, "base.yaml", **{**SECTIONS, "model": {"name": PICKY, **inner}})
    mine = write(tmp_path, extends="base.yaml", model={"inner": {"seed": 2}})
    assert load_recipe(mine).model.inner == TrainConfig(lr=0.5, seed=2)


def test_a_section_that_names_another_component_replaces_the_whole(tmp_path):
    write(tmp_path, "base.yaml", **{**SECTIONS, "model": {"name": "sasrec", "n_heads": 1}})
    mine = write(tmp_path, extends="base.yaml", model={"name": PICKY, "even": 2})
    assert load_recipe(mine).model == PickyConfig(even=2)


def test_extends_a_shipped_recipe_and_a_chain(tmp_path):
    write(tmp_path, "middle.yaml", extends="sasrec", train={"seed": 7})
    mine = write(tmp_path, extends="middle.yaml", train={"lr": 0.5})
    expected = load_recipe("sasrec", ["train.seed=7", "train.lr=0.5"])
    assert load_recipe(mine) == expected


def test_extends_is_relative_to_the_file_that_says_it(tmp_path):
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", "base.yaml", **SECTIONS)
    write(tmp_path / "recipes", extends="base.yaml")
    assert load_recipe("recipes/mine.yaml") == run_config(SECTIONS)


def test_extends_in_a_circle_is_refused_with_the_circle(tmp_path):
    write(tmp_path, "a.yaml", extends="b.yaml")
    write(tmp_path, "b.yaml", extends="a.yaml")
    text = message(load_recipe, tmp_path / "a.yaml")
    assert text.startswith("recipes extend each other in a circle: ")
    assert text.count("a.yaml") == 2
    assert text.count("b.yaml") == 1


def test_extends_must_name_one_recipe(tmp_path):
    assert message(load_recipe, write(tmp_path, extends=["a", "b"])).endswith(
        "extends names one recipe or file, got ['a', 'b']"
    )


# Overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=1e-3", 1e-3),
        ("train.lr=2E+2", 200.0),
        ("train.lr=3.e-1", 0.3),
        ("train.lr=0.25", 0.25),
        ("train.lr = 1", 1.0),
        ("train.seed=1e3", 1000),
        ("train.metric=hr@20", "hr@20"),
        ("model.name=sasrec", "sasrec"),
    ],
)
def test_override_of_one_value(override, value):
    tree = load_recipe("plain.yaml", [override]).model_dump()
    section, _, key = override.partition("=")[0].strip().partition(".")
    assert tree[section][key] == value


def test_scientific_notation_is_a_number_wherever_it_stands(tmp_path):
    assert config.parse_yaml("[1e-3, -2e5, +1.5E3, 1e-3x, e5, 0x1F]", "it") == [
        0.001,
        -200000.0,
        1500.0,
        "1e-3x",
        "e5",
        31,
    ]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SECTIONS) + "train: {lr: 5e-4}\n")
    assert load_recipe(path).train.lr == 5e-4


def test_overrides_reach_lists_and_nested_sections():
    overrides = [f"model.name={PICKY}", "model.tables=[wordllama, hf:a/b@rev]", "model.inner.lr=1e-4"]
    tree = {**SECTIONS, "model": {}}
    for override in overrides:
        config._apply(tree, override)
    model = run_config(tree).model
    assert model.tables == ("wordllama", "hf:a/b@rev")
    assert model.inner.lr == 1e-4


def test_the_last_override_wins():
    assert load_recipe("plain.yaml", ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize("override", ["train.lr", "=3", "train..lr=3", ".lr=3", "train.=3", ""])
def test_an_override_without_a_key_or_a_value_is_refused(override):
    assert message(load_recipe, "plain.yaml", [override]) == (
        f"override {override!r} is not of the form key.path=value"
    )


def test_an_override_into_a_value_is_refused():
    assert message(load_recipe, "plain.yaml", ["train.lr=1", "train.lr.x=3"]) == (
        "override 'train.lr.x=3': 'lr' is a value, not a section"
    )


def test_an_override_that_is_not_yaml_is_refused():
    text = message(load_recipe, "plain.yaml", ["train.lr=[1"])
    assert text.startswith("override 'train.lr=[1': the value is not YAML: ")


# What is wrong, said


def test_an_unknown_key_is_named_and_the_known_ones_listed():
    text = message(load_recipe, "plain.yaml", ["train.learning_rate=1"])
    assert text.startswith("plain.yaml: train: unknown key 'learning_rate'; known: batch_size, ")
    assert ", lr, " in text


def test_an_unknown_section_is_named():
    assert message(load_recipe, "plain.yaml", ["trian.lr=1"]) == (
        "plain.yaml: unknown key 'trian'; known: first, item_encoder, model, objective, rounds, train"
    )


def test_an_unknown_key_of_a_component_is_named():
    assert "plain.yaml: model: unknown key 'dims'; known: " in message(
        load_recipe, "plain.yaml", ["model.dims=3"]
    )


def test_every_wrong_value_is_named_at_once():
    text = message(load_recipe, "plain.yaml", ["train.lr=-1", "model.dim=big", "train.batch_size=0"])
    assert "model.dim: input should be a valid integer" in text
    assert "(got 'big')" in text
    assert "train.lr: input should be greater than 0 (got -1)" in text
    assert "train.batch_size: input should be greater than or equal to 1 (got 0)" in text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_finite_number_is_refused(value):
    assert "train.weight_decay: input should be a finite number" in message(
        run_config, {**SECTIONS, "train": {"weight_decay": value}}
    )


def test_a_missing_section_is_named():
    assert message(run_config, {"model": {"name": "sasrec"}}) == (
        "config: item_encoder: field required; objective: field required"
    )


@pytest.mark.parametrize("section", [None, "sasrec", {"dim": 3}, ["name"]])
def test_a_section_without_a_name_is_refused(section):
    assert message(run_config, {**SECTIONS, "model": section}) == (
        f"config: model: a section is a mapping with a `name`, got {section!r}"
    )


def test_an_unknown_component_lists_the_known_ones():
    text = message(load_recipe, "plain.yaml", ["model.name=sasrek"])
    assert text.startswith("plain.yaml: models: no component 'sasrek'; known: ")
    assert text.endswith("your own: module:Class")


def test_a_components_own_checks_are_said_in_one_line():
    wrong = {**SECTIONS, "model": {"name": PICKY, "even": 3}}
    assert message(run_config, wrong) == "config: model.even: must be even, got 3; for example 4"
    wrong = {**SECTIONS, "model": {"name": PICKY, "even": 102}}
    assert message(run_config, wrong) == "config: picky: 102 is more than 100"
    wrong = {**SECTIONS, "model": {"name": PICKY, "inner": {"lr": 0}}}
    assert message(run_config, wrong) == "config: model.inner.lr: input should be greater than 0 (got 0)"


def test_a_baseline_takes_no_model():
    assert message(run_config, {**SECTIONS, "baseline": {"name": "popularity"}}).startswith(
        "config: unknown key 'model', 'item_encoder', 'objective'; known: baseline"
    )


# Configs as objects


def test_a_config_is_frozen_and_takes_components_ready_made():
    one = RunConfig(model=PickyConfig(even=4), **{k: SECTIONS[k] for k in ("item_encoder", "objective")})
    assert one == run_config({**SECTIONS, "model": {"name": PICKY, "even": 4}})
    with pytest.raises(ValidationError, match="frozen"):
        one.train = TrainConfig()


def test_differences_name_the_key_and_both_values():
    one = load_recipe("plain.yaml")
    other = load_recipe("plain.yaml", ["train.seed=7", "model.dim=8"])
    assert config.differences(one, one) == []
    dim, seed = config.differences(one, other)
    assert dim.startswith("model.dim: ")
    assert dim.endswith(" -> 8")
    assert seed == f"train.seed: {one.train.seed} -> 7"


def test_differences_between_components_show_what_only_one_has():
    found = config.differences(
        run_config(SECTIONS), run_config({**SECTIONS, "model": {"name": PICKY, "inner": {"seed": 1}}})
    )
    assert f"model.name: sasrec -> {PICKY}" in found
    assert "model.even: (absent) -> 0" in found
    assert "model.inner.seed: (absent) -> 1" in found
    assert any(line.startswith("model.dim: ") and line.endswith(" -> (absent)") for line in found)
