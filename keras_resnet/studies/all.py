"""Runs every study, and makes one page of them.

python -m keras_resnet.studies.all
"""

import dataclasses
import os

from keras_resnet.studies import (
    complexity,
    degradation,
    gradients,
    identity,
    lesion,
    overfitting,
    responses,
    schedule,
    shortcuts,
)
from keras_resnet.studies.lib import render_page
from keras_resnet.support import write_file

STUDIES = (
    complexity.STUDY,
    degradation.STUDY,
    shortcuts.STUDY,
    gradients.STUDY,
    responses.STUDY,
    identity.STUDY,
    lesion.STUDY,
    schedule.STUDY,
    overfitting.STUDY,
)


def run_all(changes=None, measured=False):
    """Runs every study.

    Args:
        changes: fields of `keras_resnet.studies.study.Options` that are other than
            each study's own.
        measured: whether to make the reports of their tables alone.

    Returns:
        The path of the page.

    Raises:
        InputError: a study cannot be run with these; none is then.
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
    write_file(path, render_page(title, sections))
    print(f"All of them: {path}")
    return path


if __name__ == "__main__":
    from keras_resnet.studies.lib import run_with_options

    run_with_options(run_all)
