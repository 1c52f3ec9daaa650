"""Names of classes, as a labels file can hold them."""

import collections
import unicodedata
from collections.abc import Iterable

LABELS_FILE = "labels.txt"


def label_lines(classes: Iterable[str]) -> tuple[str, ...]:
    r"""Returns names of classes as a labels file can hold them: one line each, unique.

    Line breaks, control characters and what UTF-8 cannot hold (a file name's stray
    bytes) become Python's escapes, such as `\n`. A repeated name gets a number:
    `crane`, `crane (2)`. Other names stay as they are, with commas and all.
    """
    lines = ["".join(map(_printable, name)) for name in classes]
    taken, count = set(lines), collections.Counter[str]()
    for i, line in enumerate(lines):
        count[line] += 1
        if count[line] > 1:
            while (numbered := f"{line} ({count[line]})") in taken:
                count[line] += 1
            taken.add(numbered)
            lines[i] = numbered
    return tuple(lines)


def _printable(character: str) -> str:
    # str.splitlines, which clients use, also breaks lines at Zl, Zp and some of Cc.
    if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode()
    return character
