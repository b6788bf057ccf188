"""Which file of a model's folder holds the token table, on a hub and on a disk alike."""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from lexrec.errors import TokensError
from lexrec.tokens import reading, vocabulary
from lexrec.tokens._bytes import ByteFile
from lexrec.tokens.entry import Entry

_USUAL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ENDINGS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npy")
_MAX_INDEX = 64 << 20


@dataclass(frozen=True)
class Folder:
    """A model's files, wherever they lie: their names, and how to open one."""

    name: str
    files: Collection[str]
    open: Callable[[str], ByteFile]

    def text(self, file: str) -> str:
        """A vocabulary file's text."""
        opened = self.open(file)
        if opened.size > vocabulary.MAX_BYTES:
            raise TokensError(
                f"{opened.name} has {opened.size} bytes; at most {vocabulary.MAX_BYTES} are read"
            )
        try:
            return opened.read(0, opened.size).decode()
        except UnicodeDecodeError as error:
            raise TokensError(f"{opened.name}: not UTF-8 text") from error


def is_weights(file: str) -> bool:
    """True for a name that a weights file has."""
    return file.endswith(_ENDINGS)


def find(folder: Folder, tensor: str) -> str:
    """The file with the token table: the usual one, through its index where it is sharded.

    Raises:
        TokensError: no weights, or several files could be meant.
    """
    for usual in _USUAL_FILES:
        if usual in folder.files:
            return _shard(folder, usual, tensor) if usual.endswith(".json") else usual
    others = sorted(file for file in folder.files if is_weights(file))
    if len(others) != 1:
        found = ", ".join(others[:10]) or "no weights file"
        raise TokensError(f"{folder.name}: cannot tell which file holds the token table: {found}; name it")
    return others[0]


def texts(
    folder: Folder, entry: Entry, weights_file: str, found: reading.Found
) -> tuple[tuple[str, ...], str | None]:
    """Token strings, one a row, and the tokenizer.json text: as the entry names them, else as usual.

    Both are looked for beside the weights, then at the top. A GGUF's own strings win over a file that
    merely lies there.
    """
    n_rows = len(found.weight_VW)
    tokenizer = entry.tokenizer or _beside(folder, weights_file, "tokenizer.json")
    text = folder.text(tokenizer) if tokenizer else None
    if found.tokens and not entry.tokens:
        return vocabulary.fit(found.tokens, n_rows, entry.name), text
    tokens = entry.tokens or tokenizer or _beside(folder, weights_file, "vocab.txt")
    return (vocabulary.parse(folder.text(tokens), tokens, n_rows) if tokens else ()), text


def _beside(folder: Folder, weights_file: str, name: str) -> str:
    parent = weights_file.rpartition("/")[0]
    candidates = [f"{parent}/{name}", name] if parent else [name]
    return next((candidate for candidate in candidates if candidate in folder.files), "")


def _shard(folder: Folder, index: str, tensor: str) -> str:
    """The shard that an index names for the tensor, or for the ones that look like token embeddings."""
    opened = folder.open(index)
    try:
        tree: Any = json.loads(opened.read(0, min(opened.size, _MAX_INDEX)))
        files = {str(name): str(file) for name, file in tree["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokensError(f"{opened.name}: not the index of a sharded model") from error
    wanted = [name for name in files if name == tensor or (not tensor and reading.is_usual(name))]
    shards = {files[name] for name in wanted}
    if len(shards) != 1:
        listing = ", ".join(wanted or list(files)[:10])
        problem = "several tensors could be the token table" if wanted else f"no tensor {tensor!r}"
        raise TokensError(f"{opened.name}: {problem}; name one after '#': {listing}")
    shard = shards.pop()
    # Only a file the folder lists: an index must not lead outside it.
    if shard not in folder.files:
        raise TokensError(f"{opened.name}: names shard {shard!r:.200}, which {folder.name} does not have")
    return shard
