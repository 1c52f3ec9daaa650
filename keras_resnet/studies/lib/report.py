"""HTML report of one or several studies, and the record of how a table was made."""

import base64
import dataclasses
import html
import json
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from keras_resnet.spec import select_known_fields
from keras_resnet.support import (
    InputError,
    describe_machine,
    find_commit,
    package_versions,
    write_json,
)

# Version of the format of `study.json`. Files of version 0.1.0 do not contain one.
FORMAT = 1

Options = TypeVar("Options")

Provenance = dict[str, Any]
"""Contents of `study.json`: command, options and environment that made a table."""


@dataclasses.dataclass(frozen=True)
class Section:
    """Section of a report, which describes one study.

    Attributes:
        title: Heading.
        claim: The paper's claim and a description of the figure.
        findings: For each expectation its text, the result, and whether it holds.
        figure_png: Figure as the content of a PNG file.
        provenance: Contents of `study.json`.
        table: Path of the CSV file.
        budget: Images, depths, seeds and epochs as text.
    """

    title: str
    claim: str
    findings: Sequence[tuple[str, str, bool]]
    figure_png: bytes
    provenance: Provenance
    table: str
    budget: str


def write_provenance(folder: str, command: str, options: Any) -> Provenance:
    """Writes `study.json` and returns its contents. `options` is a dataclass object."""
    provenance = {
        "format": FORMAT,
        "command": command,
        "options": dataclasses.asdict(options),
        "commit": find_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
    }
    write_json(os.path.join(folder, "study.json"), provenance)
    return provenance


def read_provenance(folder: str, kind: type[Options]) -> tuple[Provenance, Options]:
    """Returns the contents of `study.json`, and its options as an object of `kind`.

    Raises:
        InputError: If the file is missing, damaged or written by a newer version.
    """
    path = os.path.join(folder, "study.json")
    try:
        with open(path, encoding="utf-8") as file:
            provenance = json.load(file)
        if (number := provenance.get("format", FORMAT)) <= FORMAT:
            return provenance, kind(**select_known_fields(kind, provenance["options"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is missing or damaged. It records how the table in its folder was made"
        ) from None
    raise InputError(
        f"{path} has format {number}, from a newer keras_resnet. This version reads up to "
        f"format {FORMAT}"
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
    """Returns an HTML page with embedded figures, which needs no other file.

    The page of several sections has a table of contents.
    """
    several = len(sections) > 1
    contents = "".join(
        f'<li><a href="#{number}">{html.escape(section.title)}</a>: '
        f"{sum(holds for *_, holds in section.findings)} of "
        f"{len(section.findings)} confirmed</li>"
        for number, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        + (f"<ol>{contents}</ol>\n" if several else "")
        + "".join(_render(s, number, several) for number, s in enumerate(sections))
        + "</html>\n"
    )


def _render(section: Section, number: int, heading: bool) -> str:
    provenance = section.provenance
    png = base64.b64encode(section.figure_png).decode()
    findings = "".join(
        f'<li>{html.escape(expected)}<br><span class="{"yes" if holds else "no"}">'
        f"{'Confirmed' if holds else 'Not confirmed'}</span>: {html.escape(result)}</li>\n"
        for expected, result, holds in section.findings
    )
    settings = (
        f"{section.budget}; commit {provenance['commit']}, {provenance['machine']}, Keras "
        f"{provenance['versions'].get('keras')}; table: "
        f"{os.path.basename(section.table)}"
    )
    title = f'<h2 id="{number}">{html.escape(section.title)}</h2>\n' if heading else ""
    return (
        f"<section>\n{title}"
        f'<p><img alt="{html.escape(section.title)}" src="data:image/png;base64,{png}"></p>\n'
        f"<p>{html.escape(section.claim)}</p>\n"
        f"<p>Expected beforehand for every seed, with the results:</p>\n<ul>\n{findings}</ul>\n"
        f"<pre>{html.escape(provenance['command'])}</pre>\n"
        f'<p class="about">{html.escape(settings)}</p>\n</section>\n'
    )
