import pyarrow as pa
import pytest

from lexrec.data.prepare import Filters, ItemTable, Options
from lexrec.errors import DataError
from tests.unit.data._tables import EVENTS, built, table, write

NUMBERED = [(user, {"pen": 3, "ink": 1, "cap": 2}[item], time) for user, item, time in EVENTS]
SHELF = pa.table(
    {
        "i": ["box", "pen", "ink"],
        "name": ["Box", "Pen", None],
        "kinds": [["a"], ["office", "blue"], []],
        "code": [7, 8, 9],
        "id": [1.5, 2.5, 3.5],
    }
)


def rows(dataset):
    return dataset.item_table.to_pylist()


def test_items_are_described_in_index_order():
    items = ItemTable(SHELF, title="name", category="kinds", keep=("code", "id"))
    dataset = built(table(), items=items)
    assert rows(dataset) == [
        {"item_id": "cap", "title": None, "category": None, "code": None, "id": None},
        {"item_id": "ink", "title": None, "category": None, "code": 9, "id": 3.5},
        {"item_id": "pen", "title": "Pen", "category": "office, blue", "code": 8, "id": 2.5},
    ]
    assert dataset.manifest["item_table"] == {"rows": 3, "missing": 1, "unused": 1, "note": None}
    assert dataset.manifest["columns"]["items"] == {
        "item_id": "i",
        "title": "name",
        "category": "kinds",
        "code": "code",
        "id": "id",
    }


def test_only_items_that_are_left_are_described():
    dataset = built(
        table(), items=ItemTable(SHELF), options=Options(filters=Filters(item_core=2, min_length=2))
    )
    assert [row["item_id"] for row in rows(dataset)] == dataset.items.ids
    kept = len(dataset.items.ids)
    facts = dataset.manifest["item_table"]
    assert facts["rows"] - facts["unused"] + facts["missing"] == kept


def test_the_order_of_the_item_table_does_not_matter():
    items = [ItemTable(t, title="name", category="kinds") for t in (SHELF, SHELF.take([2, 0, 1]))]
    one, other = (built(table(), items=each).fingerprint for each in items)
    assert one == other != built(table()).fingerprint


def test_a_title_that_is_no_text_is_made_one():
    shelf = pa.table({"i": ["pen"], "year": [1999], "tags": [[1, None, 3]]})
    items = ItemTable(shelf, title="year", category="tags")
    assert rows(built(table(), items=items))[2] == {"item_id": "pen", "title": "1999", "category": "1, 3"}


def test_text_files_describe_integer_items(tmp_path):
    path = write(tmp_path / "items.dat", "item,name\n1,Ink\n2,Cap\n3,Pen\n")
    dataset = built(table(NUMBERED), items=ItemTable(path, id="item", title="name", format="csv"))
    assert [row["title"] for row in rows(dataset)] == ["Ink", "Cap", "Pen"]
    assert dataset.manifest["source"]["items"] == "items.dat"
    assert dataset.manifest["item_table"]["note"] is None


def test_integers_written_as_text_are_matched_and_it_is_said():
    shelf = pa.table({"i": ["1", "2", "3"], "name": ["Ink", "Cap", "Pen"]})
    dataset = built(table(NUMBERED), items=ItemTable(shelf, title="name"))
    assert [row["title"] for row in rows(dataset)] == ["Ink", "Cap", "Pen"]
    assert "item ids written as text were read as integers" in dataset.summary()


def test_integers_are_matched_to_text_ids_and_it_is_said():
    events = table([(user, str(item), time) for user, item, time in NUMBERED])
    shelf = pa.table({"i": [1, 2, 3], "name": ["Ink", "Cap", "Pen"]})
    dataset = built(events, items=ItemTable(shelf, title="name"))
    assert [row["title"] for row in rows(dataset)] == ["Ink", "Cap", "Pen"]
    assert "integer item ids were read as strings" in dataset.summary()


@pytest.mark.parametrize(
    ("events", "items", "message"),
    [
        (
            EVENTS,
            ItemTable(pa.table({"i": ["pen", "ink", "pen", "ink", "cap"]})),
            "the item table: 2 items are there more than once, such as 'ink' (2 times); keep one row",
        ),
        (
            EVENTS,
            ItemTable(pa.table({"i": ["pen", None]})),
            "the item table: item ids (column 'i'): 1 of 2 are missing",
        ),
        (
            NUMBERED,
            ItemTable(pa.table({"i": ["B01", "2", "007"]})),
            "item ids are integers in the interactions, but 2 here are not, such as '007'",
        ),
        (
            EVENTS,
            ItemTable(pa.table({"i": ["hat", "bag"]})),
            "none of its 2 item ids occurs in the interactions (theirs are like 'cap'); "
            "is 'i' the right column?",
        ),
        (
            EVENTS,
            ItemTable(SHELF, title="nome"),
            "the item table has no column 'nome' (did you mean 'name'?); it has: i, name, kinds, code, id",
        ),
        (
            EVENTS,
            ItemTable(
                SHELF.rename_columns(["i", "title", "kinds", "code", "id"]), title="kinds", keep=("title",)
            ),
            "item table: title cannot be kept beside the column stored by that name",
        ),
    ],
)
def test_item_tables_that_do_not_fit_are_refused(events, items, message):
    with pytest.raises(DataError) as caught:
        built(table(events), items=items)
    assert message in str(caught.value)
