"""One run, described by one frozen, typed object: a recipe file plus dotted overrides.

A recipe either names a model (`model`, `item_encoder`, `objective`, `train`) or a `baseline`.
Each section's `name` picks the component, and the component's own config class checks the rest.
A recipe may start from another with `extends: NAME` or `extends: PATH`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from lexrec import registry
from lexrec.errors import ConfigError

_KINDS = {
    "model": "models",
    "item_encoder": "item_encoders",
    "objective": "objectives",
    "baseline": "baselines",
    "adapter": "lm.adapters",
}
"""Which registry each section of a recipe chooses from."""


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error that lists the known ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, section: Any) -> Any:
        if isinstance(section, Mapping):
            unknown = [str(key) for key in section if key not in cls.model_fields]
            if unknown:
                known = ", ".join(sorted(cls.model_fields))
                raise ValueError(f"unknown key {', '.join(map(repr, unknown))}; known: {known}")
        return section


Share = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Config):
    """How long and how to train."""

    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of Adam."""
    pretrained_lr: float = Field(1.0, gt=0)
    """Factor on it for weights that start from a pretrained language model, which forget at the rate at which
    item vectors learn."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay (AdamW)."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """How much of Adam's running means of gradients and of their squares each step keeps."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises linearly to its peak."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: the peak, or half a cosine from it to 0 at the last step of `max_epochs` or
    `max_steps`, whichever comes first."""
    clip_norm: float = Field(0.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    batch_size: int = Field(128, ge=1)
    """Samples in one optimizer step, over all ranks."""
    max_epochs: int = Field(200, ge=0)
    """Most passes over the training samples."""
    max_steps: int | None = Field(None, ge=1)
    """Most optimizer steps. They may end within an epoch, so that unlike models get one budget; null: no
    limit."""
    patience: int = Field(20, ge=1)
    """Evaluations without a better validation metric after which training stops."""
    evaluate_every: int = Field(1, ge=1)
    """Epochs between two validations."""
    metric: str = Field("ndcg@10", pattern=r"^(hr|ndcg|mrr|recall)@[1-9][0-9]*$")
    """Validation metric that picks the best epoch, larger is better."""
    select_on: Literal["validation", "test"] = "validation"
    """What that metric is measured on. test flatters the test result; some papers do it, and every result
    of such a run says so."""
    seed: int = Field(42, ge=0)
    """Seed of weights, shuffling, negatives and dropout."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 on a GPU and fp32 on a CPU."""


class FisherConfig(Config):
    """How important each expert's parameters were to Round 1: the weights of their average (eq. 13-14)."""

    kind: Literal["scalar", "diag"] = "scalar"
    """scalar: one number an expert, the mean over its parameters; diag: one number a parameter."""
    labels: Literal["model", "data"] = "model"
    """Whose answers the gradients explain: drawn from the model's own prediction, or those of the data."""
    gradients: Literal["sample", "batch"] = "sample"
    """sample: squared gradients of single samples, dropout and noise off; batch: of whole batches, both on
    (the release)."""
    n_samples: int = Field(1024, ge=1)
    """Training samples they are averaged over."""


class RoundsConfig(Config):
    """Training in two rounds: the first finds what the consensus expert of the second is made of."""

    max_epochs: int = Field(20, ge=1)
    """Most epochs of Round 1; `train` holds for the rest of it, and for Round 2."""
    start: Literal["continue", "restart"] = "continue"
    """Where Round 2 starts: at Round 1's best weights (the paper), or anew with the consensus alone kept."""
    fisher: FisherConfig = FisherConfig()


class RunConfig(Config):
    """Everything that decides a run's numbers. Written to the run directory as is."""

    model: SerializeAsAny[Config]
    item_encoder: SerializeAsAny[Config]
    objective: SerializeAsAny[Config]
    train: TrainConfig = TrainConfig()
    rounds: RoundsConfig | None = None
    """Two rounds of training, for an item encoder with a `consensus`; null: one."""
    first: tuple[str, ...] | str = ()
    """Whose best weights this run starts from: a finished run's folder, or changes, as on the command line,
    that make a round before it: ["model.columns=[]", "train.max_epochs=10"] reads ids alone first."""

    @model_validator(mode="before")
    @classmethod
    def _lm_is_the_models(cls, tree: Any) -> Any:
        """`lm.model=NAME` on the command line is short for `model.lm.model=NAME`."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("lm"), Mapping):
            return tree
        model = tree.get("model")
        if not isinstance(model, Mapping):
            return tree
        lm = {**(model.get("lm") or {}), **tree["lm"]}
        return {**{key: value for key, value in tree.items() if key != "lm"}, "model": {**model, "lm": lm}}

    @field_validator("model", "item_encoder", "objective", mode="before")
    @classmethod
    def _by_name(cls, section: Any, info: ValidationInfo) -> Any:
        return component_config(info.field_name or "", section)

    @model_validator(mode="after")
    def _rounds_fit(self) -> "RunConfig":
        has_consensus = getattr(self.item_encoder, "consensus", None) is not None
        if has_consensus and self.rounds is None:
            raise ValueError(
                "item_encoder.consensus is made in Round 1; add rounds={}, or set item_encoder.consensus=null"
            )
        if self.rounds is not None and not has_consensus:
            raise ValueError(
                "rounds makes an item encoder's consensus, and this one has none; "
                "add item_encoder.consensus={} (mltfr), or set rounds=null"
            )
        if self.first:
            if self.rounds is not None:
                raise ValueError("first and rounds each make a first round; set first=[] or rounds=null")
            if not isinstance(self.first, str):
                # An error in it is found before anything is trained.
                with_changes(self, (*self.first, "first=[]"))
        return self


class BaselineConfig(Config):
    """A run of a counting baseline: nothing is trained by gradient."""

    baseline: SerializeAsAny[Config]

    @field_validator("baseline", mode="before")
    @classmethod
    def _by_name(cls, section: Any, info: ValidationInfo) -> Any:
        return component_config(info.field_name or "", section)


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
    """Check a mapping and turn it into the config of a model run or of a baseline run.

    Raises:
        ConfigError: one line that names every key that is wrong.
    """
    shape = BaselineConfig if "baseline" in tree else RunConfig
    try:
        return shape.model_validate(dict(tree))
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_problems(error))}") from error
    except ConfigError as error:
        # Not a ValueError, so pydantic lets it through and the source is still to be named.
        raise ConfigError(f"{source}: {error}") from error


def with_changes(config: AnyRunConfig, changes: Sequence[str]) -> AnyRunConfig:
    """The same config with `a.b=value` overrides.

    Raises:
        ConfigError: an override is wrong.
    """
    tree = config.model_dump(mode="json")
    for change in changes:
        _apply(tree, change)
    return run_config(tree, source="changes")


def differences(one: AnyRunConfig, other: AnyRunConfig) -> list[str]:
    """The dotted keys in which two configs differ, each as `key: one -> other`."""
    left, right = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    keys = sorted(left.keys() | right.keys())
    pairs = [(key, left.get(key, "(absent)"), right.get(key, "(absent)")) for key in keys]
    return [f"{key}: {old} -> {new}" for key, old, new in pairs if old != new]


def component_config(section_name: str, section: Any) -> Any:
    """The config of the component a section names; a config is returned as it is.

    Args:
        section_name: model, item_encoder, objective, baseline or (of a model over a language model) adapter.
        section: a mapping with a `name`, or a config.

    Raises:
        ValueError: no mapping with a `name`, or (a ValidationError) one of its keys is wrong.
        ConfigError: there is no such component.
    """
    if isinstance(section, Config):
        return section
    if not isinstance(section, Mapping) or "name" not in section:
        raise ValueError(f"a section is a mapping with a `name`, got {section!r}")
    component = registry.load(_KINDS[section_name], str(section["name"]))
    return registry.config_class(component).model_validate(dict(section))


class _Loader(yaml.SafeLoader):
    """Safe YAML with two traps closed: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"key {', '.join(twice)} is given twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign in the exponent, and reads 1e-3 as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, what: str) -> Any:
    """Read YAML, safely; `what` names it in the ConfigError for a text that is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {' '.join(str(error).split())}") from error


def _read(recipe: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = Path(recipe)
    is_file = path.suffix in {".yaml", ".yml"}
    name = str(path.resolve()) if is_file else str(recipe)
    if name in seen:
        raise ConfigError(f"recipes extend each other in a circle: {' -> '.join((*seen, name))}")
    tree = parse_yaml(_read_file(path) if is_file else _read_shipped(name), str(recipe))
    if not isinstance(tree, dict):
        raise ConfigError(f"{recipe}: a recipe is a mapping of sections, got {type(tree).__name__}")
    if "extends" not in tree:
        return tree
    base = tree.pop("extends")
    if not isinstance(base, str):
        raise ConfigError(f"{recipe}: extends names one recipe or file, got {base!r}")
    # A file's neighbours are named from where it lies, not from where the command runs.
    beside = str(path.parent / base) if is_file and Path(base).suffix in {".yaml", ".yml"} else base
    return _merge(_read(beside, (*seen, name)), tree)


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"recipe file {str(path)!r} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe file {str(path)!r} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"recipe file {str(path)!r} cannot be read: {error.strerror}") from error


def _read_shipped(name: str) -> str:
    if name not in recipe_names():
        known = ", ".join(recipe_names())
        raise ConfigError(f"no recipe {name!r}; known: {known}; your own: path/to/recipe.yaml")
    return (resources.files("lexrec") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Key by key; a section that names another component replaces the base's whole."""
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            renamed = value.get("name", old.get("name")) != old.get("name")
            value = value if renamed else _merge(old, value)
        merged[key] = value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    *parents, leaf = dotted.strip().split(".")
    if not equals or not all([*parents, leaf]):
        raise ConfigError(f"override {override!r} is not of the form key.path=value")
    node = tree
    for key in parents:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key!r} is a value, not a section")
    node[leaf] = parse_yaml(text, f"override {override!r}: the value")


def _problems(error: ValidationError, section: str = "") -> Iterator[str]:
    """Each problem as `key: what is wrong (got value)`, sections within sections included."""
    for problem in error.errors(include_url=False):
        key = ".".join([*([section] if section else []), *map(str, problem["loc"])])
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            yield from _problems(cause, key)
            continue
        text = str(cause) if cause else problem["msg"][:1].lower() + problem["msg"][1:]
        # A missing key's input, or a section's, is the whole mapping around it: too long to show.
        got = f" (got {problem['input']!r})" if cause is None and problem["type"] != "missing" else ""
        yield f"{key}: {text}{got}" if key else text + got


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
