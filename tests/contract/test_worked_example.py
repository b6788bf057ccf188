"""The backbone that CONTRIBUTING adds works as it says: from outside, and as a file of the package."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from lexrec import registry
from lexrec.config import RunConfig, load_recipe
from tests import components, worlds
from tests.components import DIM, MAX_LEN
from tests.contract import test_backbones as backbones
from tests.contract import test_models as models

PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
OUTSIDE = "nextitnet:NextItNet"


def block(language: str, holds: str) -> str:
    """The one fenced block of the page in this language that holds a text."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (one,) = [text for text in found if holds in text]
    return one


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with both files, which Python imports from."""
    (tmp_path / "nextitnet.py").write_text(block("python", "class NextItNet("))
    (tmp_path / "nextitnet.yaml").write_text(block("yaml", "nextitnet:"))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("nextitnet", "lexrec.models.nextitnet"):
        sys.modules.pop(name, None)


def test_the_recipe_names_it(folder: Path) -> None:
    config = load_recipe(folder / "nextitnet.yaml", ["model.kernel=2"])
    assert isinstance(config, RunConfig)
    assert config.model.model_dump()["kernel"] == 2
    assert type(config.model).__module__ == "nextitnet"


CONTRACT: list[Callable[..., None]] = [
    models.test_a_causal_model_never_sees_a_later_item,
    models.test_one_users_history_changes_no_other_users_output,
    models.test_packing_changes_nothing,
    models.test_more_padding_changes_nothing,
    models.test_step_equals_reading_the_longer_history,
    models.test_freezing_changes_nothing_and_training_thaws,
    models.test_scores_come_alike_whole_by_block_and_by_item,
    backbones.test_every_parameter_has_a_use,
    backbones.test_a_state_is_the_same_in_any_batch,
]


@pytest.mark.parametrize("encoder", ["id_embedding", "mltfr"])
@pytest.mark.parametrize("promise", CONTRACT, ids=lambda test: test.__name__.removeprefix("test_"))
def test_it_keeps_the_contract(folder: Path, promise: Callable[..., None], encoder: str) -> None:
    promise(OUTSIDE, encoder)


def test_it_learns_is_captured_and_takes_an_injection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.test_learns_the_cycle(OUTSIDE, "id_embedding", "next_item")
    models.test_gradients_are_finite_with_empty_and_one_item_histories(OUTSIDE, "mltfr", "next_item")
    backbones.test_a_training_step_never_waits_for_the_device(OUTSIDE, monkeypatch)
    backbones.test_an_encoder_may_inject_after_the_first_block(OUTSIDE)


def test_as_a_file_of_the_package_it_has_a_plain_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that the package looks in, in place of a file in the checkout."""
    import lexrec.models

    monkeypatch.setattr(lexrec.models, "__path__", [*lexrec.models.__path__, str(folder)])
    assert "nextitnet" in registry.names("models")
    tree = yaml.safe_load((folder / "nextitnet.yaml").read_text())
    tree["model"]["name"] = "nextitnet"
    (folder / "plain.yaml").write_text(yaml.safe_dump(tree))
    config = load_recipe(folder / "plain.yaml")
    assert isinstance(config, RunConfig)
    assert type(config.model).__module__ == "lexrec.models.nextitnet"
    state_BLD = components.build("nextitnet")(components.ragged()).hidden_BLD
    assert state_BLD.shape == (4, MAX_LEN, DIM)
    models.test_a_causal_model_never_sees_a_later_item("nextitnet", "id_embedding")


def test_it_trains_and_recommends_from_its_folder(folder: Path, lexrec: Callable[..., object]) -> None:
    """The commands of the page, each a process that starts in that folder."""
    rows = [[(user + t) % 12 + 1 for t in range(8)] for user in range(120)]
    worlds.world(rows, 12).save(folder / "data" / "shop")
    small = ["model.dim=16", "model.max_len=8", "train.lr=0.01", "train.batch_size=32", "train.max_epochs=8"]
    trained = lexrec("train", "nextitnet.yaml", "--data", "data/shop", "--out", "runs/a", *small)
    assert trained.returncode == 0, trained.stderr
    found = lexrec("recommend", "runs/a", "--history", "i3,i4,i5", "-k", "1", "--json")
    assert '"item_id": "i6"' in found.stdout, found.stderr
