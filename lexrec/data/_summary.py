"""A data set in a few lines, for a person."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lexrec.data.dataset import Dataset


def summary(dataset: "Dataset") -> str:
    """Counts, split, ties, everything that was dropped or is missing, and the fingerprint."""
    manifest = dataset.manifest
    n_users, n_items, n_events = dataset.n_users, dataset.n_items, len(dataset.item_N)
    lines = [
        f"{n_users:,} users, {n_items:,} items, {n_events:,} events, {n_events / max(n_users, 1):.1f} a user"
    ]
    lines += [f"dropped: {line}" for line in _drops(manifest)]
    lines += _split(manifest)
    lines += _ties(manifest)
    lines += _items(manifest)
    lines.append(f"fingerprint {dataset.fingerprint[:12]}")
    return "\n".join(lines)


def _drops(manifest: dict[str, Any]) -> Iterator[str]:
    for drop in manifest.get("dropped", []):
        took = f"{drop['rows']:,} events, {drop['users']:,} users, {drop['items']:,} items"
        yield f"{took} by {drop['step']} ({drop['why']})"


def _split(manifest: dict[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{name} {n:,}" for name, n in manifest.get("split_events", {}).items())
    yield f"split: {manifest.get('split', 'unknown')}; {counts}"
    facts = manifest.get("split_facts", {})
    if facts.get("users_all_train"):
        yield f"users with fewer than 3 events, all train: {facts['users_all_train']:,}"
    if facts.get("users_test_only"):
        yield f"users with test events and no training event: {facts['users_test_only']:,}"
    if "users_with_validation_from_train" in facts:
        n_users = facts["users_with_validation_from_train"]
        yield f"users whose last training event became validation: {n_users:,}"


def _ties(manifest: dict[str, Any]) -> Iterator[str]:
    ties = manifest.get("ties")
    if ties and ties["adjacent"]:
        rule = {"row": "in the order of the rows", "hash": "in the order of a hash of their ids"}[
            ties["rule"]
        ]
        yield f"neighbouring events at the same time: {ties['adjacent']:,}, {rule}"


def _items(manifest: dict[str, Any]) -> Iterator[str]:
    table = manifest.get("item_table")
    if not table:
        return
    yield (
        f"item table: {table['rows']:,} rows; {table['unused']:,} items without an event left out, "
        f"{table['missing']:,} items without a row left empty"
    )
    if table["note"]:
        yield table["note"]
