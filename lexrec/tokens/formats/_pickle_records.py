"""The tensors that a torch checkpoint's pickle describes, found without ever loading it.

`pickletools.genops` only decodes opcodes. They drive a machine here that knows dictionaries, lists,
tuples, plain values and torch's tensor records; no name in a pickle is ever imported or called, and
whatever else a pickle asks for is refused.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lexrec.errors import TokensError

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_MAX_DOTS = 32


@dataclass(frozen=True)
class TensorRecord:
    """One tensor as the pickle describes it: a view of a storage."""

    key: str
    """Name of the storage's member, below `data/`."""
    dtype: str
    offset: int
    """Elements before the first one."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """True where the tensor is row-major without gaps."""
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != expected:
                return False
            expected *= n
        return True


@dataclass(frozen=True)
class _Name:
    """A name the pickle asks to import. It stays text."""

    text: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


class _RefusedError(Exception):
    """The pickle holds something else than tensors; the text says what."""


def read(data: bytes, where: str) -> dict[str, TensorRecord]:
    """The tensors of a checkpoint's `data.pkl` by name; nested dictionaries give dotted names.

    Raises:
        TokensError: the pickle is broken, or holds anything but tensors in dictionaries.
    """
    try:
        top = _Machine().run(data)
        return dict(_tensors(top, "", set()))
    except _RefusedError as error:
        raise TokensError(
            f"{where}: refused: {error}; a checkpoint is read only where it holds nothing but tensors "
            "(its pickle is never loaded); save it again with safetensors"
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise TokensError(f"{where}: the checkpoint's pickle is corrupt: {error}") from error


def _tensors(value: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, TensorRecord]]:
    # Each dictionary once: a memo can nest one within itself, or a thousand times in a thousand others.
    if not isinstance(value, dict) or id(value) in seen or prefix.count(".") > _MAX_DOTS:
        return
    seen.add(id(value))
    for key, inner in value.items():
        if isinstance(inner, TensorRecord):
            yield f"{prefix}{key}", inner
        else:
            yield from _tensors(inner, f"{prefix}{key}.", seen)


class _Machine:
    """A stack, marks and a memo: the parts of the pickle machine that hold data and never act."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _PUSHES:
                self.stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            else:
                raise _RefusedError(f"the pickle uses opcode {opcode.name}")
        raise ValueError("it has no end")

    def since_mark(self) -> list[Any]:
        values = self.stack
        self.stack = self.marks.pop()
        return values

    def take(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError("it takes from an empty stack")
        values = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return values


_PUSHES = {
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2"),
    *("LONG1", "LONG4", "BINFLOAT"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _memoize(machine: _Machine, slot: int | None) -> None:
    machine.memo[len(machine.memo) if slot is None else slot] = machine.stack[-1]


def _recall(machine: _Machine, slot: int) -> None:
    machine.stack.append(machine.memo[slot])


def _tuple(n: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(tuple(machine.take(n)))


def _tuple_since_mark(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.stack.append(tuple(values))


def _extend_list(machine: _Machine, values: list[Any]) -> None:
    if not isinstance(machine.stack[-1], list):
        raise ValueError("it appends to what is no list")
    machine.stack[-1].extend(values)


def _set_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(values) % 2:
        raise ValueError("it sets items of what is no dictionary")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | int):
            raise _RefusedError(f"a dictionary key of type {type(key).__name__}")
        target[key] = value


def _global(machine: _Machine, argument: str) -> None:
    _push_name(machine, argument.replace(" ", ".", 1))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = machine.take(2)
    _push_name(machine, f"{module}.{name}")


def _push_name(machine: _Machine, text: str) -> None:
    if text not in _CALLS and not _is_storage(text):
        raise _RefusedError(f"the pickle names {text!r:.100}, which is no tensor")
    machine.stack.append(_Name(text))


def _is_storage(text: str) -> bool:
    module, _, name = text.rpartition(".")
    return module == "torch" and name in _STORAGES


def _persistent(machine: _Machine, _: Any) -> None:
    kind, name, key, _device, _numel = machine.stack.pop()
    if kind != "storage" or not isinstance(name, _Name) or not isinstance(key, str):
        raise ValueError("a storage record is malformed")
    if not _is_storage(name.text):
        raise ValueError(f"{name.text} is no storage")
    machine.stack.append(_Storage(key, _STORAGES[name.text.rpartition(".")[2]]))


def _reduce(machine: _Machine, _: Any) -> None:
    name, arguments = machine.take(2)
    if not isinstance(name, _Name) or name.text not in _CALLS or not isinstance(arguments, tuple):
        raise ValueError("it calls what is no function")
    machine.stack.append(_CALLS[name.text](*arguments))


def _build(machine: _Machine, _: Any) -> None:
    """State for the object below: a state_dict's `_metadata`, which says nothing about tensors."""
    target, _state = machine.take(2)
    if not isinstance(target, dict):
        raise _RefusedError(f"it sets the state of a {type(target).__name__}")
    machine.stack.append(target)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRecord:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or len(shape) != len(stride):
        raise ValueError("a tensor record is malformed")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a tensor record has shape {shape!r:.80} and strides {stride!r:.80}")
    return TensorRecord(storage.key, storage.dtype, offset, tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> TensorRecord:
    if not isinstance(tensor, TensorRecord):
        raise ValueError("a parameter record holds no tensor")
    return tensor


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise _RefusedError("an OrderedDict with arguments")
    return {}


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _mark,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "MEMOIZE": _memoize,
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "TUPLE": _tuple_since_mark,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda machine, _: _extend_list(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _extend_list(machine, machine.since_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BINPERSID": _persistent,
    "REDUCE": _reduce,
    "BUILD": _build,
}
