"""The file is the registration: found by name, one class a file, or `module:Class` from outside."""

import sys
from typing import ClassVar

import pytest

from lexrec import registry
from lexrec.errors import ConfigError
from lexrec.models.base import SequenceModel
from lexrec.models.sasrec import SASRec

KINDS = ["models", "item_encoders", "objectives", "baselines"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_a_kind_holds_one_component_with_a_config(kind):
    assert registry.names(kind)
    for name in registry.names(kind):
        component = registry.load(kind, name)
        assert component.__module__ == f"lexrec.{kind}.{name}"
        assert registry.config_class(component)().name == name


@pytest.mark.parametrize("kind", KINDS)
def test_base_and_underscore_files_are_no_components(kind):
    assert "base" not in registry.names(kind)
    assert not [name for name in registry.names(kind) if name.startswith("_")]


@pytest.mark.parametrize("name", ["sasrek", "base", "_layers", "", "lexrec.models.sasrec"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError) as caught:
        registry.load("models", name)
    assert str(caught.value).startswith(f"models: no component {name!r}; known: ")
    assert "sasrec" in str(caught.value)


class Mine(SASRec):
    """A component outside the package."""


class Unrelated:
    pass


def test_a_class_of_another_module_is_loaded():
    assert registry.load("models", f"{__name__}:Mine") is Mine
    assert registry.config_class(Mine) is registry.config_class(SASRec)


@pytest.mark.parametrize(
    "name", ["no_such_module:Model", f"{__name__}:Missing", ":Model", f"{__name__}:", ".relative:Model"]
)
def test_what_cannot_be_loaded_is_named_with_the_reason(name):
    with pytest.raises(ConfigError) as caught:
        registry.load("models", name)
    assert str(caught.value).startswith(f"models: cannot load {name!r} (module:Class): ")


@pytest.mark.parametrize("name", ["Unrelated", "KINDS"])
def test_what_is_no_component_of_the_kind_is_refused(name):
    with pytest.raises(ConfigError, match=r"is not a subclass of lexrec\.models\.base\.SequenceModel"):
        registry.load("models", f"{__name__}:{name}")


def test_a_module_with_a_syntax_error_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_component.py").write_text("class Model(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"broken_component\.py, line 1") as caught:
        registry.load("models", "broken_component:Model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("", 0),
        ("class _Hidden(SASRec): pass", 0),
        ("class One(SASRec): pass\nclass _Hidden(SASRec): pass", 1),
        ("class One(SASRec): pass\nclass Two(SASRec): pass", 2),
    ],
)
def test_a_file_defines_exactly_one_component(tmp_path, monkeypatch, source, count):
    import lexrec.models

    (tmp_path / "planted.py").write_text(f"from lexrec.models.sasrec import SASRec\n{source}\n")
    monkeypatch.setattr(lexrec.models, "__path__", [*lexrec.models.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "lexrec.models.planted", raising=False)
    assert "planted" in registry.names("models")
    if count == 1:
        assert registry.load("models", "planted").__name__ == "One"
    else:
        with pytest.raises(ConfigError, match=f"planted must define exactly one SequenceModel, has {count}"):
            registry.load("models", "planted")


def test_a_component_must_say_which_config_it_takes():
    class Bare(SequenceModel):
        causal: ClassVar[bool] = True

    with pytest.raises(ConfigError, match="Bare does not say which config it takes; write `config: "):
        registry.config_class(Bare)


def test_an_annotation_that_cannot_be_resolved_is_named():
    class Vague(SASRec):
        config: "OnlyForTheTypeChecker"  # noqa: F821

    with pytest.raises(ConfigError, match="Vague: name 'OnlyForTheTypeChecker' is not defined; what its"):
        registry.config_class(Vague)
