"""Class names as lines of labels.txt."""

import collections
import unicodedata
from collections.abc import Iterable

LABELS_FILE = "labels.txt"


def make_label_lines(classes: Iterable[str]) -> tuple[str, ...]:
    r"""Returns one unique line for each class name.

    Replaces line breaks, control characters and characters that UTF-8 cannot encode
    (stray bytes of a file name) by Python escapes, such as `\n`. Repeated names get
    numbers: `crane`, `crane (2)`. Other names do not change, even if they have commas.
    """
    lines = ["".join(map(_to_printable, name)) for name in classes]
    taken_lines, counts = set(lines), collections.Counter[str]()
    for i, line in enumerate(lines):
        counts[line] += 1
        if counts[line] > 1:
            while (numbered_line := f"{line} ({counts[line]})") in taken_lines:
                counts[line] += 1
            taken_lines.add(numbered_line)
            lines[i] = numbered_line
    return tuple(lines)


def _to_printable(character: str) -> str:
    # Control characters, surrogates, and line and paragraph separators.
    if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode()
    return character
