"""Class names as lines of a labels file."""

import collections
import unicodedata
from collections.abc import Iterable

LABELS_FILE = "labels.txt"


def make_label_lines(classes: Iterable[str]) -> tuple[str, ...]:
    r"""Returns one unique line for each class name.

    Replaces line breaks, control characters and characters that UTF-8 cannot encode
    (stray bytes of a file name) by Python escapes, such as `\n`. Numbers repeated
    names: `crane`, `crane (2)`. All other names, also with commas, are unchanged.
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
    # Clients call str.splitlines, which also splits at Zl, Zp and some Cc characters.
    if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode()
    return character
