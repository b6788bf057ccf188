"""Item ids as a person types them: separated by commas, or one a line in a file."""

from pathlib import Path

from lexrec.data.vocabulary import Id, Vocabulary
from lexrec.errors import DataError


def typed_ids(text: str, vocabulary: Vocabulary) -> list[Id]:
    """Ids separated by commas, of the type the vocabulary has; an empty text is no id.

    Raises:
        DataError: the vocabulary's ids are integers and one is not.
    """
    return [vocabulary.parse(word.strip()) for word in text.split(",") if word.strip()]


def typed_list(text: str, vocabulary: Vocabulary) -> list[Id]:
    """The same, or, where `text` is the path of a file, its lines.

    Raises:
        DataError: as above, or the file cannot be read as text.
    """
    path = Path(text)
    if not path.is_file():
        return typed_ids(text, vocabulary)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as text with one item id a line: {error}") from error
    return [vocabulary.parse(line.strip()) for line in lines if line.strip()]
