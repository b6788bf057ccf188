"""A token table on disk: safetensors, its token strings and tokenizer as JSON, and a manifest written last.

The cache and the folders of `lexrec tokens pull --out` hold the same files under different names.
Dimension key: V tokens, W width of the language model.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from lexrec.config import Config
from lexrec.errors import TokensError
from lexrec.tokens.entry import plain_name
from lexrec.tokens.table import TokenTable

StoredDtype = Literal["bf16", "int8"]
"""bf16, or int8 with one float32 scale a row: half the disk, an error of at most 1/254 of a row's largest."""

Naming = Callable[[str, str], str]
"""From a file's part (`table`, `tokens`, `tokenizer`) and the sha256 of its content to its name."""

FOLDER_NAMES = {"table": "table.safetensors", "tokens": "tokens.json", "tokenizer": "tokenizer.json"}
MANIFEST = "manifest.json"


class FileRecord(Config):
    """One file beside the manifest."""

    # Never a path: a manifest from elsewhere must not point outside its own folder.
    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Config):
    """What a stored table is and which files hold it."""

    format_version: Literal[1] = 1
    name: str
    source: str
    revision: str
    sha256: str
    licence: str
    shape: tuple[int, int]
    dtype: StoredDtype
    table: FileRecord
    tokens: FileRecord | None
    tokenizer: FileRecord | None


def check_dtype(dtype: str) -> None:
    """Raises TokensError unless `dtype` is one of the stored types."""
    if dtype not in get_args(StoredDtype):
        raise TokensError(f"dtype {dtype!r} is no stored type of a token table; choose bf16 or int8")


def write(table: TokenTable, manifest_path: Path, dtype: StoredDtype, naming: Naming) -> Manifest:
    """Write a table beside `manifest_path`, whole files at a time and the manifest last."""
    folder = manifest_path.parent
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "tokens": json.dumps(table.tokens, ensure_ascii=False).encode() if table.tokens else None,
        "tokenizer": table.tokenizer.encode() if table.tokenizer is not None else None,
    }
    records = {part: text and _write_text(folder, naming, part, text) for part, text in texts.items()}
    manifest = Manifest(
        name=table.name,
        source=table.source,
        revision=table.revision,
        sha256=table.sha256,
        licence=table.licence,
        shape=(table.n_tokens, table.width),
        dtype=dtype,
        table=_write_tensors(folder, naming, _pack(table.weight_VW, dtype)),
        tokens=records["tokens"] or None,
        tokenizer=records["tokenizer"] or None,
    )
    _put(manifest_path, manifest.model_dump_json(indent=1).encode())
    return manifest


def write_folder(table: TokenTable, out: Path, dtype: StoredDtype = "bf16") -> Path:
    """Write a table to the folder `out/NAME`, to be read back as `file:out/NAME`.

    Raises:
        TokensError: that folder holds something else, or it cannot be written.
    """
    folder = out / plain_name(table.name)
    manifest = folder / MANIFEST
    if manifest.is_file() and (there := read_manifest(manifest)).sha256 != table.sha256:
        raise TokensError(f"{folder} already holds the table {there.source}; choose another --out")
    if not manifest.is_file() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TokensError(f"{folder} exists and holds no token table; choose another --out")
    try:
        write(table, manifest, dtype, lambda part, _: FOLDER_NAMES[part])
    except OSError as error:
        raise TokensError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def read(manifest_path: Path, *, verify: bool = False) -> TokenTable:
    """Read a table back. Sizes and shapes are always checked, every byte's hash with `verify`.

    Raises:
        TokensError: a file is missing, changed or is not what the manifest says.
    """
    manifest = read_manifest(manifest_path)
    folder = manifest_path.parent
    for record in (manifest.table, manifest.tokens, manifest.tokenizer):
        if record is not None:
            _check(folder / record.name, record, verify)
    return TokenTable(
        name=manifest.name,
        weight_VW=_unpack(_load(folder / manifest.table.name), manifest, manifest_path),
        tokens=_strings(folder / manifest.tokens.name) if manifest.tokens else (),
        source=manifest.source,
        revision=manifest.revision,
        sha256=manifest.sha256,
        licence=manifest.licence,
        tokenizer=_text(folder / manifest.tokenizer.name) if manifest.tokenizer else None,
    )


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest; TokensError where it is not one of this version."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = str(error).splitlines()[0]
        raise TokensError(f"{path}: not the manifest of a stored token table: {why}") from error


def rounded(weight_VW: Tensor, dtype: StoredDtype) -> Tensor:
    """The weights as they come back from disk: what int8 loses is lost before the first use too."""
    return _plain(_pack(weight_VW, dtype))


def _pack(weight_VW: Tensor, dtype: StoredDtype) -> dict[str, Tensor]:
    if dtype == "bf16":
        return {"weight_VW": weight_VW.to(torch.bfloat16).contiguous()}
    peak_V = weight_VW.abs().amax(dim=1).float()
    scale_V = torch.where(peak_V > 0, peak_V / 127, 1.0)
    whole_VW = (weight_VW.float() / scale_V[:, None]).round()
    return {"weight_VW": whole_VW.to(torch.int8), "scale_V": scale_V}


def _plain(tensors: dict[str, Tensor]) -> Tensor:
    weight_VW = tensors["weight_VW"]
    if "scale_V" in tensors:
        weight_VW = weight_VW * tensors["scale_V"][:, None]
    return weight_VW.to(torch.bfloat16)


def _unpack(tensors: dict[str, Tensor], manifest: Manifest, path: Path) -> Tensor:
    n_rows, width = manifest.shape
    expected = {
        "bf16": {"weight_VW": ((n_rows, width), torch.bfloat16)},
        "int8": {"weight_VW": ((n_rows, width), torch.int8), "scale_V": ((n_rows,), torch.float32)},
    }[manifest.dtype]
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != expected:
        raise TokensError(f"{path}: the tensors are {found}, the manifest says {expected}")
    return _plain(tensors)


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise TokensError(f"{path}: corrupt: {error}") from error
    return tensors


def _write_tensors(folder: Path, naming: Naming, tensors: dict[str, Tensor]) -> FileRecord:
    from safetensors.torch import save_file

    # The name may hold the hash of the content, which is known only once it is written.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as scratch:
        partial = Path(scratch) / "table"
        save_file(tensors, partial)
        sha256 = hash_file(partial)
        name, size = naming("table", sha256), partial.stat().st_size
        partial.replace(folder / name)
    return FileRecord(name=name, size=size, sha256=sha256)


def _write_text(folder: Path, naming: Naming, part: str, data: bytes) -> FileRecord:
    sha256 = hashlib.sha256(data).hexdigest()
    name = naming(part, sha256)
    _put(folder / name, data)
    return FileRecord(name=name, size=len(data), sha256=sha256)


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(partial).replace(path)


def _check(path: Path, record: FileRecord, verify: bool) -> None:
    size = path.stat().st_size if path.is_file() else None
    if size != record.size:
        found = "is missing" if size is None else f"has {size} bytes"
        raise TokensError(f"{path}: corrupt: the file {found}, its manifest says {record.size} bytes")
    if verify and hash_file(path) != record.sha256:
        raise TokensError(f"{path}: corrupt: its content is not what its manifest says (sha256 differs)")


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _strings(path: Path) -> tuple[str, ...]:
    try:
        tokens = json.loads(_text(path))
    except ValueError as error:
        raise TokensError(f"{path}: corrupt: not JSON") from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TokensError(f"{path}: corrupt: not a list of token strings")
    return tuple(tokens)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise TokensError(f"{path}: corrupt: not UTF-8 text") from error
