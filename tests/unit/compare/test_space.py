import random

import pytest

from lexrec.compare.space import check_space, parse_space
from lexrec.config import load_recipe
from lexrec.errors import ConfigError

optuna = pytest.importorskip("optuna")


def suggested(text, value):
    """The override a trial gets for a value that Optuna chose."""
    (dimension,) = parse_space([text])
    return dimension.suggest(optuna.trial.FixedTrial({dimension.key: value}))


@pytest.mark.parametrize(
    ("text", "value", "override"),
    [
        ("train.lr=1e-4..1e-2:log", 0.0012345678, "train.lr=0.0012346"),
        ("model.dropout=.1..0.55", 0.3, "model.dropout=0.3"),
        ("model.dropout=0.1..0.5:0.1", 0.30000000000000004, "model.dropout=0.3"),
        ("model.n_layers=1..4", 3, "model.n_layers=3"),
        ("model.dim=16..256:log", 17, "model.dim=17"),
        ("model.dim=16..64:16", 48, "model.dim=48"),
        ("model.n_layers=1.0..4", 2.5, "model.n_layers=2.5"),
        ("model.dim=[64, 128]", "128", "model.dim=128"),
        ("train.lr=[1e-3, 2e-3]", "0.001", "train.lr=0.001"),
        ("objective.loss=[ce, bce]", '"bce"', 'objective.loss="bce"'),
        ("train.betas=[[0.9, 0.98]]", "[0.9, 0.98]", "train.betas=[0.9, 0.98]"),
    ],
)
def test_a_dimension_becomes_an_override(text, value, override):
    assert suggested(text, value) == override


def test_what_optuna_draws_lies_in_the_range():
    space = parse_space(["a=1..4", "b=0.1..0.5:0.3", "c=1e-4..1e-2:log", "d=16..64:log"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(60):
        trial = study.ask()
        drawn.append([float(dimension.suggest(trial).partition("=")[2]) for dimension in space])
    a, b, c, d = zip(*drawn, strict=True)
    assert set(a) == {1, 2, 3, 4}
    assert set(b) == {0.1, 0.4}  # .7 would be beyond the end
    assert 1e-4 <= min(c) < 1e-3 < max(c) <= 1e-2
    assert 16 <= min(d) < max(d) <= 64


def test_a_file_and_words_make_one_space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("train.lr: 1e-4..1e-2:log\nmodel.dim: [64, 128]\n")
    space = parse_space([str(path), "model.n_layers=1..4"])
    assert [str(dimension) for dimension in space] == [
        "train.lr=0.0001..0.01:log",
        "model.dim=[64, 128]",
        "model.n_layers=1..4",
    ]


FORM = "write key=low..high, key=low..high:log, key=low..high:step or key=[a, b]"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], f"an empty space: nothing would vary; {FORM}"),
        (["model.dim"], f"space 'model.dim' is neither key=... nor a YAML file; {FORM}"),
        (["=1..2"], f"space: no key before '1..2'; {FORM}"),
        (["a=3"], f"space: a=3 is neither a range nor a list; {FORM}"),
        (["a=[]"], f"space: a=[] is neither a range nor a list; {FORM}"),
        (["a=4..1"], "space: a=4..1: 4 is not below 1"),
        (["a=0..1:log"], "space: a=0..1:log: a logarithmic range starts above 0"),
        (["a=0..1:2"], "space: a=0..1:2: a step is above 0 and at most 1"),
        (["a=1..2", "a=[3]"], "space: a is given twice"),
        (["train.seed=1..9"], "space: train.seed may not vary: a seed that wins is luck, not a setting"),
        (["train.metric=[hr@10]"], "space: train.metric may not vary: trials are compared by it"),
    ],
)
def test_what_is_no_space_is_refused(texts, message):
    with pytest.raises(ConfigError) as error:
        parse_space(texts)
    assert str(error.value) == message


def test_a_file_that_is_no_space_is_refused(tmp_path):
    path = tmp_path / "space.yaml"
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_space([str(path)])
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="a space is a mapping such as `train"):
        parse_space([str(path)])


def load(overrides):
    return load_recipe("sasrec", overrides)


def check(*texts):
    check_space(parse_space(texts), load)


def test_a_setting_the_recipe_does_not_have_is_refused():
    with pytest.raises(ConfigError) as error:
        check("train.lr=1e-4..1e-2:log", "train.learning_rate=1e-4..1e-2")
    assert str(error.value).startswith(
        "space: train.learning_rate=0.0001: sasrec: train: unknown key 'learning_rate'; known: "
    )


def test_either_end_that_is_out_of_bounds_is_refused():
    with pytest.raises(ConfigError, match=r"space: model\.dropout=1\.5: sasrec: model\.dropout: "):
        check("model.dropout=0.1..1.5")
    with pytest.raises(ConfigError, match=r'space: objective\.loss="cee": '):
        check("objective.loss=[ce, cee]")


def test_values_that_clash_only_with_the_recipe_as_it_stands_are_fine():
    # Three heads do not divide the recipe's 64 columns, but they divide 96.
    with pytest.raises(ConfigError):
        load(["model.n_heads=3"])
    check("model.n_heads=[2, 3]", "model.dim=[64, 96]")


def test_a_draw_is_one_of_the_ends():
    (dimension,) = parse_space(["a=1..4"])
    assert {dimension.draw(random.Random(i)) for i in range(9)} == {"a=1", "a=4"}
