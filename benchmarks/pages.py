"""Tables that stand in a page between two marks, the first of which says what makes them. No figure is typed.

<!-- figures steps steps -->
<!-- end -->
"""

import re
from collections.abc import Callable, Sequence


def filled(page: str, kind: str, make: Callable[..., list[str]]) -> str:
    """The page with everything between marks of a kind made anew, from the words of the first mark."""
    marked = re.compile(rf"(<!-- {kind}((?: \S+)+) -->\n).*?(<!-- end -->)", re.DOTALL)

    def made(found: re.Match[str]) -> str:
        return found[1] + "".join(f"{line}\n" for line in make(*found[2].split())) + found[3]

    return marked.sub(made, page)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
