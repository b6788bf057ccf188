"""From any table of interactions to a data set.

    source -> columns -> codes for ids -> filters -> sort -> arrays -> split -> Dataset

Up to the sort it is Ibis, on an embedded DuckDB or on any engine given; what comes after is NumPy over
sorted rows, so that engines cannot disagree about it.

Dimension key: N events, U users.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from ibis.expr import types as ir
from numpy.typing import NDArray

from lexrec import __version__
from lexrec.data import splits
from lexrec.data._arrays import Arrays, NewArray, count_ties, in_memory, only, read_arrays
from lexrec.data._coding import Coded, encode
from lexrec.data._engine import Engine, working
from lexrec.data._memory import parse_memory
from lexrec.data._stages import Tell, stages, tell_nobody
from lexrec.data._write import new_array, new_folder, write_files
from lexrec.data.columns import Columns
from lexrec.data.dataset import FORMAT_VERSION, Dataset, fingerprint
from lexrec.data.filters import Filters, size, steps
from lexrec.data.items import Described, ItemTable, describe
from lexrec.data.readers import open_source
from lexrec.data.splits import GivenSplit, LeaveOneOut, Marked, Split, TimeSplit
from lexrec.errors import DataError

__all__ = [
    "Columns",
    "Filters",
    "GivenSplit",
    "ItemTable",
    "LeaveOneOut",
    "Options",
    "TimeSplit",
    "build",
    "prepare",
]

Ties = Literal["row", "hash"]


@dataclass(frozen=True)
class Options:
    """Everything about preparation besides which columns there are."""

    filters: Filters = field(default_factory=Filters)
    split: Split = field(default_factory=LeaveOneOut)
    ties: Ties = "row"
    """Order of a user's events of equal time: `row` as they stand in the input; `hash` by the first 12
    hexadecimal digits of the MD5 of "USER ITEM" (both ids as text, UTF-8), however the rows stand."""
    format: str | None = None
    """Name of the file format, where the path's suffix does not say it."""
    engine: Any = None
    """An Ibis backend to work in; an embedded DuckDB by default."""
    memory: str | int | None = None
    """What preparation may take, such as "4GiB" or a number of bytes; half of what there is by default. More
    than fits is kept on disk beside the data set until it is done. An engine of yours keeps its own limit."""
    force: bool = False
    """Replace a data set that is at `out` already."""

    def __post_init__(self) -> None:
        if self.ties not in ("row", "hash"):
            raise DataError(f"ties {self.ties!r}; allowed: row, hash")
        if self.memory is not None:
            parse_memory(self.memory)


def prepare(
    events: Any,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = None,
    out: str | Path,
    items: ItemTable | None = None,
    options: Options | None = None,
) -> Dataset:
    """Turn interactions into a data set folder and open it.

    Args:
        events: a path (Parquet, CSV, TSV, JSONL, RecBole .inter, one user a line), the address of a
            database table (`duckdb:///shop.db#events`), an Ibis table, or a pandas, polars or Arrow table.
        user: column of user ids.
        item: column of item ids.
        time: column that orders a user's events; without one they are in the order of the rows.
        out: folder to write.
        items: what is known of each item.
        options: filters, split, tie rule, engine.

    Raises:
        DataError: one line about what is wrong; nothing has been written then.
    """
    options = options or Options()
    given = options.split.column if isinstance(options.split, GivenSplit) else None
    columns = Columns(user, item, time, options.filters.rating, given)
    with new_folder(Path(out), force=options.force) as folder, stages() as tell:
        room = Room(partial(new_array, folder), folder.parent, tell)
        dataset = build(events, columns, items=items, options=options, room=room)
        tell("flushing to disk")
        write_files(dataset, folder)
    return Dataset.load(out)


@dataclass(frozen=True)
class Room:
    """Where `build` puts things and says how far it is: in memory and to nobody, unless told otherwise."""

    new: NewArray = in_memory
    scratch: Path | None = None
    """Folder for what does not fit in memory; the system's by default."""
    tell: Tell = tell_nobody


def build(
    events: Any,
    columns: Columns,
    *,
    items: ItemTable | None = None,
    options: Options,
    room: Room | None = None,
) -> Dataset:
    """Make a data set in memory; `prepare` without the writing."""
    _refuse_contradictions(columns, items, options)
    room = room or Room()
    with working(options.engine, options.memory, room.scratch, room.tell) as engine:
        engine.tell("opening the events")
        source = open_source(
            events, list(columns.roles().values()), options.format, engine, "the event table"
        )
        coded = encode(source, columns, options.ties, engine)
        described = None
        if items is not None:
            engine.tell("reading the item table")
            described = describe(coded.items, coded.kinds["item"], items, columns.item, engine)
        kept, n_events, dropped = _filter(coded, options.filters, engine)
        arrays = read_arrays(kept, n_events, coded, engine, room.new)
        users = only(_ids(coded.users, "user_id", engine), arrays.is_user_C)
        all_items = described.table if described else _ids(coded.items, "item_id", engine)
        item_table = only(all_items, arrays.is_item_C)
    room.tell("splitting")
    marked = _mark(arrays, coded, options.split, users)
    facts = {
        "source": {"events": source.name, "items": described.name if described else None},
        "columns": {"events": columns.roles(), "items": items.names(columns.item) if items else None},
        "ids": {role: coded.kinds[role] for role in ("user", "item")},
        "filters": asdict(options.filters),
        "dropped": dropped,
        "split": splits.rule(options.split, marked),
        "split_events": _split_events(marked),
        "split_facts": marked.facts,
        "ties": _ties(options.ties, arrays),
        "time_unit": coded.kinds.get("time"),
        "item_table": _item_facts(described, arrays),
    }
    room.tell("taking the fingerprint")
    return _dataset(arrays, marked.mark_N, users, item_table, facts)


def _refuse_contradictions(columns: Columns, items: ItemTable | None, options: Options) -> None:
    if items is not None and not isinstance(items, ItemTable):
        raise DataError("items is an ItemTable: ItemTable(path or table, title=..., category=...)")
    if columns.time is not None:
        return
    if options.ties == "hash":
        raise DataError("ties 'hash' needs a time column (--time): without one the row order is the order")
    if isinstance(options.split, TimeSplit):
        raise DataError("a time split needs a time column (--time)")


def _filter(coded: Coded, filters: Filters, engine: Engine) -> tuple[ir.Table, int, list[dict[str, Any]]]:
    """What is left, how many events that are, and what each filter took."""
    events, before, dropped = coded.events, coded.size, []
    for step in steps(filters, engine, coded.order):
        engine.tell(f"filtering: {step.name}")
        events = step.apply(events)
        after = size(events, engine)
        took = {name: getattr(before, name) - getattr(after, name) for name in before._fields}
        dropped.append({"step": step.name, "why": step.why, **took})
        if after.rows == 0:
            most = max(dropped, key=lambda drop: int(drop["rows"]))
            raise DataError(
                f"nothing is left after filtering: {most['step']} ({most['why']}) took {most['rows']:,} "
                f"of {coded.size.rows:,} events; ask for less"
            )
        before = after
    return events, before.rows, dropped


def _ids(vocabulary: ir.Table, name: str, engine: Engine) -> pa.Table:
    return engine.rows(vocabulary.order_by("code").select(**{name: "id"}))


def _mark(arrays: Arrays, coded: Coded, split: Split, users: pa.Table) -> Marked:
    if isinstance(split, TimeSplit):
        assert arrays.time_N is not None
        return splits.by_time(arrays.time_N, arrays.offset_U, coded.kinds["time"], split)
    if isinstance(split, GivenSplit):
        assert arrays.mark_N is not None
        marked, fault = splits.given(arrays.mark_N, arrays.offset_U, split)
        if fault is not None:
            raise DataError(
                f"split column {split.column!r} goes back in time: user "
                f"{users['user_id'][fault].as_py()!r} has an event marked for an earlier split after one "
                "marked for a later; check --time, or split again"
            )
        return marked
    return splits.leave_one_out(arrays.offset_U)


def _split_events(marked: Marked) -> dict[str, int]:
    counts = np.bincount(marked.mark_N, minlength=3).tolist()
    return dict(zip(("train", "validation", "test"), counts, strict=True))


def _ties(rule: Ties, arrays: Arrays) -> dict[str, Any]:
    n_tied = 0 if arrays.time_N is None else count_ties(arrays.time_N, arrays.offset_U)
    return {"rule": rule, "adjacent": n_tied}


def _item_facts(described: Described | None, arrays: Arrays) -> dict[str, Any] | None:
    """What the item table gave, and what it did not."""
    if described is None:
        return None
    n_known = int((described.is_known_C & arrays.is_item_C).sum())
    missing, unused = int(arrays.is_item_C.sum()) - n_known, described.n_rows - n_known
    return {"rows": described.n_rows, "missing": missing, "unused": unused, "note": described.note}


def _dataset(
    arrays: Arrays, mark_N: NDArray[np.uint8], users: pa.Table, items: pa.Table, facts: dict[str, Any]
) -> Dataset:
    flat: dict[str, NDArray[Any]] = {"item": arrays.item_N, "offset": arrays.offset_U, "split": mark_N}
    if arrays.time_N is not None:
        flat["time"] = arrays.time_N
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(flat, users, items),
        "lexrec": __version__,
        "n_users": len(users),
        "n_items": len(items),
        "n_events": len(arrays.item_N),
        "has_time": arrays.time_N is not None,
        **facts,
    }
    tables = {"users": users, "items": items}
    return Dataset(arrays.item_N, arrays.offset_U, mark_N, arrays.time_N, manifest, None, tables)
