"""Arms: what is compared. A recipe, perhaps with changes, and how a seed enters its config."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lexrec import registry
from lexrec.config import AnyRunConfig, BaselineConfig, load_recipe
from lexrec.errors import ConfigError

_NAMED = re.compile(r"([^\s:=]+):\s+(\S.*)", re.DOTALL)
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_FORM = "an arm is a recipe's name, a YAML file, or 'NAME: RECIPE key=value ...'"
_STRIDE = 1000
"""Between the random tables of two seeds: an encoder with several tables counts on from its random_seed."""


@dataclass(frozen=True)
class Arm:
    """One recipe with its changes; `{seed}` in a change stands for the seed of the run."""

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()

    def config(self, seed: int) -> AnyRunConfig:
        """The config of one run; random control tables are drawn anew for each seed.

        Raises:
            ConfigError: the recipe or a change is wrong.
        """
        overrides = [override.replace("{seed}", str(seed)) for override in self.overrides]
        config = load_recipe(self.recipe, overrides)
        if isinstance(config, BaselineConfig):
            return config
        overrides.append(f"train.seed={seed}")
        drawn_here = {change.partition("=")[0].strip() for change in self.overrides if "{seed}" in change}
        for key, value in _random_seeds(config.item_encoder.model_dump(), "item_encoder"):
            if key not in drawn_here:
                overrides.append(f"{key}={value + _STRIDE * seed}")
        return load_recipe(self.recipe, overrides)

    @property
    def is_counted(self) -> bool:
        """True for a baseline, which is counted once and has no seed."""
        return isinstance(self.config(1), BaselineConfig)


def parse_arm(text: str) -> Arm:
    """An arm from what the command line gives.

    Raises:
        ConfigError: it is not of one of the forms, or sets the seed itself.
    """
    named = _NAMED.fullmatch(text.strip())
    words = _words(named[2] if named else text)
    if not words:
        raise ConfigError(f"arm {text!r} is empty; {_FORM}")
    recipe, *overrides = words
    if overrides and named is None:
        raise ConfigError(f"arm {text!r} changes a recipe and needs a name of its own; {_FORM}")
    name = named[1] if named else Path(recipe).stem
    if not _SAFE.fullmatch(name):
        raise ConfigError(f"arm name {name!r} names a folder: use letters, digits and . _ + -")
    if any(override.partition("=")[0].strip() == "train.seed" for override in overrides):
        raise ConfigError(f"arm {name}: train.seed is what compare varies; leave it out")
    return Arm(name, recipe, tuple(overrides))


def changed(arm: Arm, overrides: Sequence[str]) -> Arm:
    """The arm with overrides before its own; a counted arm as it is."""
    return arm if arm.is_counted else replace(arm, overrides=(*overrides, *arm.overrides))


def with_baselines(texts: Sequence[str]) -> list[Arm]:
    """The arms asked for and, after them, every counting baseline that is not among them.

    Raises:
        ConfigError: an arm is wrong, or two have one name.
    """
    arms = [parse_arm(text) for text in texts]
    if not arms:
        raise ConfigError(f"no arm to compare; {_FORM}")
    counted = {arm.recipe for arm in arms if arm.is_counted}
    arms += [Arm(name, name) for name in registry.names("baselines") if name not in counted]
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two arms are called {', '.join(twice)}; give each a name: 'NAME: RECIPE ...'")
    return arms


def _random_seeds(section: Mapping[str, Any], key: str) -> Iterator[tuple[str, int]]:
    """Where an item encoder, or one within it, draws noise in place of its tables, and its seed."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _random_seeds(value, f"{key}.{name}")
    seed = section.get("random_seed")
    if seed is not None or ("random_seed" in section and section.get("source") == "constant"):
        yield f"{key}.random_seed", seed or 0


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"arm {text!r}: {error}") from error
