"""Runs every study and writes a common report of all studies.

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


def run_all(changes: dict[str, Any] | None = None, report_only: bool = False) -> str:
    """Runs every study, writes a common report and returns the path of the report.

    Args:
        changes: Fields of `Options` whose values replace the defaults of each study.
        report_only: Whether to redraw figures and reports from existing tables.

    Raises:
        InputError: If a study does not support the options. In this case no study runs.
    """
    plans = [(s, dataclasses.replace(s.defaults, **(changes or {}))) for s in STUDIES]
    if not report_only:
        for study, options in plans:  # All options are checked before a study runs.
            study.check_options(options)
    sections = []
    for study, options in plans:
        sections.append(study.run(options, report_only))
        print(flush=True)
    path = os.path.join(options.folder, "report.html")
    title = f"Claims of the ResNet paper, tested on {options.dataset}"
    write_file(path, lib.render_page(title, sections))
    print(f"Report of all studies: {path}")
    return path


if __name__ == "__main__":
    lib.run_with_options(run_all)
