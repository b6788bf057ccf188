"""One run, described by one frozen, typed object: a recipe file plus dotted overrides.

A recipe either names a model (`model`, `item_encoder`, `objective`, `train`) or a `baseline`.
Each section's `name` picks the component, and the component's own config class checks the rest.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
)
from pydantic_core.core_schema import ValidationInfo

from lexrec import registry
from lexrec.errors import ConfigError


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TrainConfig(Config):
    """How long and how to train."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of Adam."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly to its peak."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    batch_size: int = Field(128, ge=1)
    """Samples in one optimizer step, over all ranks."""
    max_epochs: int = Field(200, ge=0)
    """Most passes over the training samples."""
    patience: int = Field(20, ge=1)
    """Evaluations without a better validation metric after which training stops."""
    evaluate_every: int = Field(1, ge=1)
    """Epochs between two validations."""
    metric: str = Field("ndcg@10", pattern=r"^(hr|ndcg|mrr|recall)@[1-9][0-9]*$")
    """Validation metric that picks the best epoch, larger is better."""
    seed: int = Field(42, ge=0)
    """Seed of weights, shuffling, negatives and dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 on a GPU and fp32 on a CPU."""


class RunConfig(Config):
    """Everything that decides a run's numbers. Written to the run directory as is."""

    model: SerializeAsAny[Config]
    item_encoder: SerializeAsAny[Config]
    objective: SerializeAsAny[Config]
    train: TrainConfig = TrainConfig()

    @field_validator("model", "item_encoder", "objective", mode="before")
    @classmethod
    def _by_name(cls, section: Any, info: ValidationInfo) -> Any:
        kinds = {"model": "models", "item_encoder": "item_encoders", "objective": "objectives"}
        return _component_config(kinds[info.field_name or ""], section)


class BaselineConfig(Config):
    """A run of a counting baseline: nothing is trained by gradient."""

    baseline: SerializeAsAny[Config]

    @field_validator("baseline", mode="before")
    @classmethod
    def _by_name(cls, section: Any) -> Any:
        return _component_config("baselines", section)


AnyRunConfig = RunConfig | BaselineConfig


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("lexrec") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> AnyRunConfig:
    """Read a recipe and apply `a.b=value` overrides (values are YAML).

    Args:
        recipe: the name of a shipped recipe, or the path of a YAML file.
        overrides: such as `model.dim=128` or `item_encoder.tables=[wordllama,minilm]`.

    Raises:
        ConfigError: unknown recipe, unknown key or a value out of range.
    """
    tree = _read(recipe)
    for override in overrides:
        _apply(tree, override)
    return run_config(tree, source=str(recipe))


def run_config(tree: Mapping[str, Any], *, source: str = "config") -> AnyRunConfig:
    """Check a mapping and turn it into the config of a model run or of a baseline run."""
    shape = BaselineConfig if "baseline" in tree else RunConfig
    try:
        return shape.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from error


def differences(one: AnyRunConfig, other: AnyRunConfig) -> list[str]:
    """The dotted keys in which two configs differ, each as `key: one -> other`."""
    left, right = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    keys = sorted(left.keys() | right.keys())
    return [f"{k}: {left.get(k)} -> {right.get(k)}" for k in keys if left.get(k) != right.get(k)]


def _component_config(kind: str, section: Any) -> Any:
    if isinstance(section, Config):
        return section
    if not isinstance(section, Mapping) or "name" not in section:
        raise ConfigError(f"{kind}: a section is a mapping with a `name`, got {section!r}")
    component = registry.load(kind, str(section["name"]))
    return registry.config_class(component).model_validate(dict(section))


def _read(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ConfigError(f"recipe file {str(recipe)!r} does not exist")
        text = path.read_text(encoding="utf-8")
    elif str(recipe) in recipe_names():
        text = (resources.files("lexrec") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        known = ", ".join(recipe_names())
        raise ConfigError(f"no recipe {str(recipe)!r}; known: {known}; your own: path/to/recipe.yaml")
    try:
        tree: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{recipe}: not YAML: {error}".replace("\n", " ")) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{recipe}: a recipe is a mapping of sections, got {type(tree).__name__}")
    if "extends" in tree:
        return _merge(_read(tree.pop("extends")), tree)
    return tree


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Section by section; a section that names another component replaces the base's whole."""
    for key, value in over.items():
        old = base.get(key)
        same = isinstance(old, dict) and isinstance(value, Mapping)
        renamed = same and "name" in value and value["name"] != old.get("name")  # type: ignore[union-attr]
        base[key] = {**old, **value} if same and not renamed else value  # type: ignore[dict-item]
    return base


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    *parents, leaf = dotted.strip().split(".")
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key!r} is a value, not a section")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error


def _explain(error: ValidationError) -> str:
    """Each problem as `key: what is wrong (got value)`, on one line."""
    found = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "recipe"
        got = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
        found.append(f"{key}: {problem['msg']}{got}")
    return "; ".join(found)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
