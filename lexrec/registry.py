"""A component's file is its registration.

Kind "models" and name "sasrec" mean the one class in `lexrec/models/sasrec.py` that derives from
`COMPONENT_BASE` of `lexrec/models/base.py`. Nothing else has to be edited, and nothing is imported
until it is named. A component outside the package is named `module:Class`.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any, get_type_hints

from lexrec.errors import ConfigError

_PACKAGE = __name__.rpartition(".")[0]


def names(kind: str) -> list[str]:
    """The component names of one kind, from the files in its folder."""
    folder = importlib.import_module(f"{_PACKAGE}.{kind}")
    found = (module.name for module in pkgutil.iter_modules(folder.__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def load(kind: str, name: str) -> type[Any]:
    """The component class called `name` ("sasrec", or "my_package.my_module:MyModel").

    Raises:
        ConfigError: there is no such component; the message lists the known names.
    """
    base = importlib.import_module(f"{_PACKAGE}.{kind}.base").COMPONENT_BASE
    if ":" in name:
        return _outside_class(kind, name, base)
    if name not in names(kind):
        known = ", ".join(names(kind))
        raise ConfigError(f"{kind}: no component {name!r}; known: {known}; your own: module:Class")
    return _only_subclass(importlib.import_module(f"{_PACKAGE}.{kind}.{name}"), base)


def config_class(component: type) -> type[Any]:
    """The config a component takes: the type of its `config` annotation.

    Raises:
        ConfigError: the class has no such annotation, or one that cannot be resolved at run time.
    """
    fix = "write `config: ItsConfig` in the class"
    try:
        found: type[Any] = get_type_hints(component)["config"]
    except KeyError as error:
        raise ConfigError(f"{component.__qualname__} does not say which config it takes; {fix}") from error
    except NameError as error:
        raise ConfigError(
            f"{component.__qualname__}: {error}; what its class annotations name must be imported at run time"
        ) from error
    return found


def _outside_class(kind: str, name: str, base: type) -> type[Any]:
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
        raise ConfigError(f"{kind}: cannot load {name!r} (module:Class): {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{kind}: {name!r} is not a subclass of {base.__module__}.{base.__name__}")
    return found


def _only_subclass(module: ModuleType, base: type) -> type[Any]:
    here = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    public = [value for value in here if not value.__name__.startswith("_")]
    if len(public) != 1:
        raise ConfigError(f"{module.__name__} must define exactly one {base.__name__}, has {len(public)}")
    return public[0]
