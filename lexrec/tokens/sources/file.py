"""`file:path#tensor`: a table on this machine.

The path is a weights file (safetensors, GGUF, torch zip, .npy), a pattern that matches the pieces of
one (`model.gguf.part*`), a model's folder, or a folder that `lexrec tokens pull --out` wrote.
"""

import glob
from pathlib import Path

from lexrec.errors import TokensError
from lexrec.tokens import reading, stored
from lexrec.tokens._bytes import ByteFile, Joined, LocalFile
from lexrec.tokens.entry import Entry
from lexrec.tokens.sources import _weights
from lexrec.tokens.sources.base import TokenSource
from lexrec.tokens.table import TokenTable


class FileSource(TokenSource):
    """Local files. They are read where they are and not copied into the cache."""

    is_remote = False

    def read(self, entry: Entry) -> TokenTable:
        path = Path(entry.location).expanduser()
        if (path / stored.MANIFEST).is_file():
            if entry.fragment:
                raise TokensError(f"{path}: a stored table is one tensor; leave out '#{entry.fragment}'")
            return stored.read(path / stored.MANIFEST)
        parent = path if path.is_dir() else path.parent
        folder = _weights.Folder(str(parent), _names(parent), lambda name: LocalFile(parent / name))
        name = _weights.find(folder, entry.fragment) if path.is_dir() else path.name
        found = reading.read_tensor(_open(parent / name), entry, entry.fragment)
        tokens, tokenizer = _weights.texts(folder, entry, name, found)
        return TokenTable(
            name=entry.name,
            weight_VW=found.weight_VW,
            tokens=tokens,
            source=f"file:{parent / name}#{found.tensor}",
            revision="",
            sha256=found.sha256,
            licence=entry.licence or found.licence,
            tokenizer=tokenizer,
        )


def _names(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()} if parent.is_dir() else set()


def _open(path: Path) -> ByteFile:
    """One file, or the pieces of one in the order of their names."""
    if path.exists() or "*" not in path.name:
        return LocalFile(path)
    pieces = sorted(path.parent.glob(f"{glob.escape(path.name).replace('[*]', '*')}"))
    if not pieces:
        raise TokensError(f"no file matches {str(path)!r}")
    return Joined([LocalFile(piece) for piece in pieces])
