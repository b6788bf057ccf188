"""What an arm may be, and how a seed enters it."""

import pytest

from lexrec.compare.arms import Arm, changed, parse_arm, with_baselines
from lexrec.errors import ConfigError


def test_the_three_forms():
    assert parse_arm("sasrec") == Arm("sasrec", "sasrec")
    assert parse_arm("recipes/mine.yaml") == Arm("mine", "recipes/mine.yaml")
    wide = parse_arm("wide: sasrec model.dim=128 'model.dropout = 0.1'")
    assert wide == Arm("wide", "sasrec", ("model.dim=128", "model.dropout = 0.1"))
    assert wide.config(3).model.dim == 128


def test_the_seed_is_the_runs_and_may_stand_in_a_change():
    arm = parse_arm("a: sasrec train.warmup_steps={seed}")
    assert [arm.config(seed).train.seed for seed in (1, 2)] == [1, 2]
    assert arm.config(7).train.warmup_steps == 7


def test_random_tables_are_drawn_anew_for_each_seed():
    arm = parse_arm("random: sasrec_mltfr item_encoder.random_seed=5")
    assert [arm.config(seed).item_encoder.random_seed for seed in (1, 2)] == [1005, 2005]
    own = parse_arm("random: sasrec_mltfr item_encoder.random_seed={seed}")
    assert [own.config(seed).item_encoder.random_seed for seed in (1, 2)] == [1, 2]
    constant = parse_arm("constant: sasrec_mltfr item_encoder.source=constant")
    assert [constant.config(seed).item_encoder.random_seed for seed in (1, 2)] == [1000, 2000]
    assert parse_arm("sasrec_mltfr").config(2).item_encoder.random_seed is None


def test_changes_for_all_come_before_an_arms_own_and_leave_baselines_alone():
    arm = changed(parse_arm("a: sasrec train.lr=0.5"), ["train.lr=0.1", "train.batch_size=8"])
    assert (arm.config(1).train.lr, arm.config(1).train.batch_size) == (0.5, 8)
    assert changed(Arm("markov", "markov"), ["train.lr=0.1"]) == Arm("markov", "markov")


def test_every_baseline_is_in_once():
    assert [arm.name for arm in with_baselines(["sasrec"])] == ["sasrec", "item_knn", "markov", "popularity"]
    named = with_baselines(["sasrec", "p: popularity", "markov"])
    assert [arm.name for arm in named] == ["sasrec", "p", "markov", "item_knn"]


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        (
            "sasrec model.dim=8",
            "arm 'sasrec model.dim=8' changes a recipe and needs a name of its own; an arm is",
        ),
        ("../x: sasrec", "arm name '../x' names a folder: use letters, digits and . _ + -"),
        ("a: sasrec train.seed=3", "arm a: train.seed is what compare varies; leave it out"),
        ("a: sasrec 'model.dim=8", 'arm "sasrec \'model.dim=8": No closing quotation'),
        ("  ", "arm '  ' is empty; an arm is a recipe's name, a YAML file, or 'NAME: RECIPE key=value ...'"),
    ],
)
def test_what_is_no_arm_is_refused(arm, said):
    with pytest.raises(ConfigError) as error:
        parse_arm(arm)
    assert str(error.value).startswith(said)


def test_two_arms_of_one_name_and_no_arm_are_refused(tmp_path):
    (tmp_path / "sasrec.yaml").write_text("extends: sasrec")
    with pytest.raises(ConfigError, match="two arms are called sasrec; give each a name"):
        with_baselines(["sasrec", str(tmp_path / "sasrec.yaml")])
    with pytest.raises(ConfigError, match="no arm to compare; an arm is"):
        with_baselines([])
