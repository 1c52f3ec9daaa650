"""Runs every study, and makes one page of them.

python -m keras_resnet.studies.all
"""

import dataclasses
import os
from typing import Any

from keras_resnet.studies import (
    complexity,
    degradation,
    gradients,
    identity,
    lesion,
    lib,
    overfitting,
    responses,
    schedule,
    shortcuts,
)
from keras_resnet.support import write_file

STUDIES = (
    complexity.STUDY, degradation.STUDY, shortcuts.STUDY, gradients.STUDY,
    responses.STUDY, identity.STUDY, lesion.STUDY, schedule.STUDY, overfitting.STUDY,
)  # fmt: skip


def run_all(changes: dict[str, Any] | None = None, measured: bool = False) -> str:
    """Runs every study, or makes the reports of their tables alone (`measured`).

    The changes are fields of `keras_resnet.studies.lib.Options` that are other than each
    study's own. Returns the path of the page.

    Raises:
        InputError: A study cannot be run with these; none is then.
    """
    chosen = [(s, dataclasses.replace(s.defaults, **(changes or {}))) for s in STUDIES]
    if not measured:
        for study, options in chosen:  # Before any of them takes its minutes.
            study.checked(options)
    sections = []
    for study, options in chosen:
        sections.append(study.run(options, measured))
        print(flush=True)
    path = os.path.join(options.folder, "report.html")
    title = f"What the paper claims, on {options.dataset}"
    write_file(path, lib.render_page(title, sections))
    print(f"All of them: {path}")
    return path


if __name__ == "__main__":
    lib.run_with_options(run_all)
