"""A small MovieLens-100K: thirty users, twenty films, in the forms its files come in."""

import io
import zipfile
from pathlib import Path

N_USERS, N_FILMS, N_RATINGS = 30, 20, 9
FLAGS = {"Comedy": 5, "Drama": 8, "Film-Noir": 10}
"""Places of three genres among the nineteen flags of u.item."""


def genres(film: int) -> list[str]:
    return [genre for n, genre in enumerate(FLAGS, 2) if film % n == 0]


def title(film: int) -> str:
    return f"Café {film}, The"


def ratings() -> list[tuple[int, int, int]]:
    """User, film, second: everybody walks through the films, each from somewhere else."""
    return [
        (user, (user * 7 + n) % N_FILMS + 1, 880_000_000 + 60 * n)
        for user in range(1, N_USERS + 1)
        for n in range(N_RATINGS)
    ]


def original() -> dict[str, bytes]:
    """GroupLens' two files, in their encoding."""
    films = []
    for film in range(1, N_FILMS + 1):
        flags = ["1" if i in {FLAGS[genre] for genre in genres(film)} else "0" for i in range(19)]
        films.append(
            "|".join([str(film), f"{title(film)} ({1970 + film})", "01-Jan-1995", "", "http://x", *flags])
        )
    data = "".join(f"{user}\t{film}\t3\t{second}\n" for user, film, second in ratings())
    return {"u.data": data.encode(), "u.item": ("\n".join(films) + "\n").encode("latin-1")}


def atomic() -> dict[str, bytes]:
    """The same as RecBole has it."""
    events = [f"{user}\t{film}\t3\t{second}" for user, film, second in ratings()]
    films = [f"{f}\t{title(f)}\t{1970 + f}\t{' '.join(genres(f))}" for f in range(1, N_FILMS + 1)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    return {
        "ml-100k.inter": "\n".join([header, *events]).encode(),
        "ml-100k.item": "\n".join(
            ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *films]
        ).encode(),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def zipped(files: dict[str, bytes], folder: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"{folder}/{name}", data)
    return buffer.getvalue()
