import pytest

from lexrec.data.vocabulary import Vocabulary
from lexrec.errors import DataError
from lexrec.serving.typed import typed_ids, typed_list

WORDS = Vocabulary(["a", "7"], first=1, what="item")
NUMBERS = Vocabulary([7, 8], first=1, what="item")


@pytest.mark.parametrize(
    ("text", "vocabulary", "ids"),
    [
        ("a,7", WORDS, ["a", "7"]),
        (" 7 , 8,", NUMBERS, [7, 8]),
        ("9", NUMBERS, [9]),
        ("", WORDS, []),
    ],
)
def test_typed_ids_get_the_type_of_the_vocabulary(text, vocabulary, ids):
    assert typed_ids(text, vocabulary) == ids
    assert typed_list(text, vocabulary) == ids


def test_an_id_of_another_type_is_refused():
    with pytest.raises(DataError, match="item id 'x': ids of this data set are integers"):
        typed_ids("7,x", NUMBERS)


def test_a_file_has_one_id_a_line(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("\ufeff7\n\n 8 \n", encoding="utf-8")
    assert typed_list(str(path), NUMBERS) == [7, 8]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"cannot read .*ids\.txt as text with one item id a line"):
        typed_list(str(path), NUMBERS)
