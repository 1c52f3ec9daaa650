"""Class names as lines of labels.txt."""

import collections
from collections.abc import Iterable

from keras_resnet.support import to_printable

LABELS_FILE = "labels.txt"


def make_label_lines(classes: Iterable[str]) -> tuple[str, ...]:
    r"""Returns one unique line for each class name.

    Replaces the characters that `to_printable` escapes, such as line breaks. Repeated
    names get numbers: `crane`, `crane (2)`. Other names do not change, even if they
    have commas.
    """
    lines = [to_printable(name) for name in classes]
    taken_lines, counts = set(lines), collections.Counter[str]()
    for i, line in enumerate(lines):
        counts[line] += 1
        if counts[line] > 1:
            while (numbered_line := f"{line} ({counts[line]})") in taken_lines:
                counts[line] += 1
            taken_lines.add(numbered_line)
            lines[i] = numbered_line
    return tuple(lines)
