"""HTML report of studies, and `study.json`, which records how a study was run."""

import base64
import dataclasses
import html
import os
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict, TypeVar

from keras_resnet import support
from keras_resnet.spec import select_known_fields
from keras_resnet.support import InputError, check_type, read_json, write_json

# Format number of `study.json`. Files of keras_resnet 0.1.0 have no format number.
FORMAT_NUMBER = 1

OptionsT = TypeVar("OptionsT")


class StudyRecord(TypedDict):
    """Contents of `study.json`: command, options and software versions of a study."""

    format: NotRequired[int]
    command: str
    options: dict[str, Any]
    commit: str | None
    machine: str
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Section:
    """Section of a report. Each section describes one study.

    Attributes:
        title: Title of the study.
        claim: The paper's claim and a description of the figure.
        findings: Expectations, each with a result as text and whether it is confirmed.
        figure_png: Figure, encoded as PNG.
        record: Contents of `study.json`.
        table_path: Path of the CSV file with the measured rows.
        settings: Dataset, depths, seeds and epochs as text.
    """

    title: str
    claim: str
    findings: Sequence[tuple[str, str, bool]]
    figure_png: bytes
    record: StudyRecord
    table_path: str
    settings: str


def write_record(folder: str, command: str, options: Any) -> StudyRecord:
    """Writes `study.json` and returns its contents. `options` is a dataclass object."""
    record: StudyRecord = {
        "format": FORMAT_NUMBER,
        "command": command,
        "options": dataclasses.asdict(options),
        "commit": support.find_commit(),
        "machine": support.describe_machine(),
        "versions": support.find_versions(),
    }
    write_json(os.path.join(folder, "study.json"), record)
    return record


def read_record(folder: str, cls: type[OptionsT]) -> tuple[StudyRecord, OptionsT]:
    """Returns the contents of `study.json`, and the recorded options as a `cls` object.

    Raises:
        InputError: If the file is missing, damaged or written by a newer version.
    """
    path = os.path.join(folder, "study.json")
    try:
        record = read_json(path)
        if (format_number := record.get("format", FORMAT_NUMBER)) <= FORMAT_NUMBER:
            check_type(record, StudyRecord, "study.json")
            options = cls(**select_known_fields(cls, record["options"]))
            check_type(options, cls, "options")
            return record, options
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is missing or damaged. Run the study without --report to write it"
        ) from None
    raise InputError(
        f"{path} has format {format_number}, from a newer keras_resnet. "
        f"Update keras_resnet to read formats above {FORMAT_NUMBER}"
    )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff }
img { max-width: 100%; height: auto }
pre { background: #f4f4f4; padding: .6rem .8rem; overflow-x: auto }
li { margin: .4rem 0 }
.yes { color: #00694a; font-weight: bold } .no { color: #a33c00; font-weight: bold }
.about { color: #666; font-size: .85rem }
"""


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Returns an HTML page in which the figures are embedded.

    If there are several sections, the page starts with a table of contents.
    """
    is_combined = len(sections) > 1
    contents = "".join(
        f'<li><a href="#{index}">{html.escape(section.title)}</a>: '
        f"{sum(holds for *_, holds in section.findings)} of "
        f"{len(section.findings)} confirmed</li>"
        for index, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        + (f"<ol>{contents}</ol>\n" if is_combined else "")
        + "".join(_render_section(s, i, is_combined) for i, s in enumerate(sections))
        + "</html>\n"
    )


def _render_section(section: Section, index: int, has_title: bool) -> str:
    record = section.record
    png = base64.b64encode(section.figure_png).decode()
    findings = "".join(
        f'<li>{html.escape(expectation)}<br><span class="{"yes" if holds else "no"}">'
        f"{'Confirmed' if holds else 'Not confirmed'}</span>: {html.escape(result)}</li>\n"
        for expectation, result, holds in section.findings
    )
    settings = (
        f"{section.settings}; commit {record['commit']}, {record['machine']}, Keras "
        f"{record['versions'].get('keras')}; table: {os.path.basename(section.table_path)}"
    )
    title = f'<h2 id="{index}">{html.escape(section.title)}</h2>\n' if has_title else ""
    return (
        f"<section>\n{title}"
        f'<p><img alt="{html.escape(section.title)}" src="data:image/png;base64,{png}"></p>\n'
        f"<p>{html.escape(section.claim)}</p>\n"
        f"<p>Expected beforehand for every seed, with the results:</p>\n<ul>\n{findings}</ul>\n"
        f"<pre>{html.escape(record['command'])}</pre>\n"
        f'<p class="about">{html.escape(settings)}</p>\n</section>\n'
    )
