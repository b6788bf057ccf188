"""The space of a search: which settings of a recipe vary, and between what.

train.lr=1e-4..1e-2:log     any number between, even on a logarithmic scale
model.dropout=0.1..0.5:0.1  in steps
model.n_layers=1..4         whole numbers, where both ends are
model.dim=[64, 128]         one of a list
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lexrec.config import parse_yaml
from lexrec.errors import ConfigError

if TYPE_CHECKING:
    import optuna

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(log|{_NUMBER}))?")
_WHOLE = re.compile(r"[-+]?\d+")
_FORM = "write key=low..high, key=low..high:log, key=low..high:step or key=[a, b]"
_FIXED = {
    "train.seed": "a seed that wins is luck, not a setting",
    "train.metric": "trials are compared by it",
    "train.select_on": "trials are compared by validation events",
}
_TRIES = 20
"""Random points tried before a value that fails in the recipe as it stands is called wrong."""


@dataclass(frozen=True)
class Dimension:
    """One setting that varies: a list, or a range."""

    key: str
    choices: tuple[str, ...] = ()
    """Values as they stand in an override; empty for a range."""
    low: Decimal = Decimal(0)
    high: Decimal = Decimal(0)
    step: Decimal | None = None
    is_log: bool = False
    is_whole: bool = False

    def __str__(self) -> str:
        if self.choices:
            return f"{self.key}=[{', '.join(self.choices)}]"
        rest = ":log" if self.is_log else "" if self.step is None else f":{self.step}"
        return f"{self.key}={self.low}..{self.high}{rest}"

    def suggest(self, trial: "optuna.Trial") -> str:
        """What the trial is to try, as an override."""
        if self.choices:
            return f"{self.key}={trial.suggest_categorical(self.key, self.choices)}"
        if self.is_whole:
            first, last, step = int(self.low), int(self.high), int(self.step or 1)
            return f"{self.key}={trial.suggest_int(self.key, first, last, step=step, log=self.is_log)}"
        low, high = float(self.low), float(self.high)
        if self.step is None:
            # Five digits say all that a trial can, and a person can read them.
            return f"{self.key}={trial.suggest_float(self.key, low, high, log=self.is_log):.5g}"
        value = trial.suggest_float(self.key, low, high, step=float(self.step))
        return f"{self.key}={self.low + round((value - low) / float(self.step)) * self.step}"

    def ends(self) -> list[str]:
        """Overrides that must all be possible: every choice, or both ends of the range."""
        values = self.choices or (str(self.low), str(self.high))
        return [f"{self.key}={value}" for value in values]

    def draw(self, generator: random.Random) -> str:
        """Any of them."""
        if self.choices:
            return f"{self.key}={generator.choice(self.choices)}"
        return generator.choice(self.ends())


def parse_space(texts: Sequence[str]) -> list[Dimension]:
    """Dimensions from `key=...` texts and YAML files of `key: ...`.

    Raises:
        ConfigError: a text or a file is not of this form, or a key is given twice or may not vary.
    """
    pairs = [pair for text in texts for pair in _pairs(text)]
    dimensions = [_dimension(key, value) for key, value in pairs]
    keys = [dimension.key for dimension in dimensions]
    if not keys:
        raise ConfigError(f"an empty space: nothing would vary; {_FORM}")
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"space: {key} is given twice")
        if key in _FIXED:
            raise ConfigError(f"space: {key} may not vary: {_FIXED[key]}")
    return dimensions


def check_space(dimensions: Sequence[Dimension], load: Callable[[Sequence[str]], Any]) -> None:
    """Refuse a setting that the recipe does not have, and a value that no point of the space allows.

    Args:
        dimensions: what varies.
        load: makes the config of some overrides, or raises ConfigError.

    Raises:
        ConfigError: what the recipe says to the first such value.
    """
    generator = random.Random(0)
    for dimension in dimensions:
        for override in dimension.ends():
            # Alone it may clash with the recipe as it stands (3 heads in 64 columns) and be fine with others.
            others = [
                [other.draw(generator) for other in dimensions if other is not dimension]
                for _ in range(_TRIES)
            ]
            errors = (_refusal(load, [*point, override]) for point in [[], *others])
            first = next(errors)
            if first is not None and all(error is not None for error in errors):
                raise ConfigError(f"space: {override}: {first}")


def _refusal(load: Callable[[Sequence[str]], Any], overrides: Sequence[str]) -> ConfigError | None:
    try:
        load(overrides)
    except ConfigError as error:
        return error
    return None


def _pairs(text: str) -> list[tuple[str, Any]]:
    key, equals, value = text.partition("=")
    if equals:
        return [(key.strip(), value.strip())]
    path = Path(text)
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"space {text!r} is neither key=... nor a YAML file; {_FORM}")
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8-sig"), text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"space file {text!r} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{text}: a space is a mapping such as `train.lr: 1e-4..1e-2:log`")
    return [(str(key), value) for key, value in tree.items()]


def _dimension(key: str, value: Any) -> Dimension:
    if not key:
        raise ConfigError(f"space: no key before {value!r}; {_FORM}")
    if isinstance(value, str):
        found = _RANGE.fullmatch(value)
        if found is not None:
            return _range(key, value, found)
        value = parse_yaml(value, f"space {key}={value}")
    if not isinstance(value, list) or not value:
        raise ConfigError(f"space: {key}={value!r} is neither a range nor a list; {_FORM}")
    # JSON is YAML, so each choice stays what it is: a number, a name, a list, a whole section.
    return Dimension(key, tuple(dict.fromkeys(json.dumps(choice) for choice in value)))


def _range(key: str, text: str, found: "re.Match[str]") -> Dimension:
    low, high = Decimal(found[1]), Decimal(found[2])
    is_log = found[3] == "log"
    step = Decimal(found[3]) if found[3] and not is_log else None
    if low >= high:
        raise ConfigError(f"space: {key}={text}: {low} is not below {high}")
    if is_log and low <= 0:
        raise ConfigError(f"space: {key}={text}: a logarithmic range starts above 0")
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"space: {key}={text}: a step is above 0 and at most {high - low}")
    if step is not None:
        high = low + (high - low) // step * step
    is_whole = all(_WHOLE.fullmatch(part) for part in (found[1], found[2]))
    is_whole = is_whole and (step is None or step == int(step))
    return Dimension(key, low=low, high=high, step=step, is_log=is_log, is_whole=is_whole)
