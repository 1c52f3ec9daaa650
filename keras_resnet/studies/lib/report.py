"""The page of a study, or of all: figure, findings, the command that made it."""

import base64
import dataclasses
import html
import json
import os
from collections.abc import Sequence
from typing import Any, TypeVar

from keras_resnet.spec import known_fields
from keras_resnet.support import InputError, commit, machine, versions, write_json

# A higher number is a newer version's. Files of version 0.1.0 have none.
FORMAT = 1

Options = TypeVar("Options")

About = dict[str, Any]
"""How a table was made: the contents of `study.json`."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A study on a page.

    Attributes:
        title: Heading.
        claim: What the paper says and what the figure shows.
        findings: Predictions, results with figures, and whether these confirm those.
        picture: The figure as a PNG.
        about: How the table was made.
        table: Path of the CSV.
        budget: Images, seeds and epochs, in words.
    """

    title: str
    claim: str
    findings: Sequence[tuple[str, str, bool]]
    picture: bytes
    about: About
    table: str
    budget: str


def write_about(folder: str, command: str, options: Any) -> About:
    """Writes `study.json`: command and options, a dataclass. Returns its contents."""
    about = {
        "format": FORMAT,
        "command": command,
        "options": dataclasses.asdict(options),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    write_json(os.path.join(folder, "study.json"), about)
    return about


def read_about(folder: str, kind: type[Options]) -> tuple[About, Options]:
    """Reads `study.json`; returns its contents, and its options as a `kind`.

    Raises:
        InputError: The file is missing or damaged, or a newer version wrote it.
    """
    path = os.path.join(folder, "study.json")
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        if (number := about.get("format", FORMAT)) <= FORMAT:
            return about, kind(**known_fields(kind, about["options"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}, which says how the table beside it was made, is missing or damaged"
        ) from None
    raise InputError(
        f"{path} has format {number}, from a newer keras_resnet; this version reads up to "
        f"{FORMAT}"
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
    """Returns an HTML page that holds its pictures and needs no other file.

    Several sections get a table of contents.
    """
    several = len(sections) > 1
    contents = "".join(
        f'<li><a href="#{number}">{html.escape(section.title)}</a>: '
        f"{sum(holds for *_, holds in section.findings)} of "
        f"{len(section.findings)} borne out</li>"
        for number, section in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        + (f"<ol>{contents}</ol>\n" if several else "")
        + "".join(_section(s, number, several) for number, s in enumerate(sections))
        + "</html>\n"
    )


def _section(section: Section, number: int, heading: bool) -> str:
    about = section.about
    picture = base64.b64encode(section.picture).decode()
    findings = "".join(
        f'<li>{html.escape(expected)}<br><span class="{"yes" if holds else "no"}">'
        f"{'Borne out' if holds else 'Not borne out'}</span>: {html.escape(seen)}</li>\n"
        for expected, seen, holds in section.findings
    )
    settings = (
        f"{section.budget}; commit {about['commit']}, {about['machine']}, Keras "
        f"{about['versions'].get('keras')}; the rows are in "
        f"{os.path.basename(section.table)}"
    )
    title = f'<h2 id="{number}">{html.escape(section.title)}</h2>\n' if heading else ""
    return (
        f"<section>\n{title}"
        f'<p><img alt="{html.escape(section.title)}" src="data:image/png;base64,{picture}"></p>\n'
        f"<p>{html.escape(section.claim)}</p>\n"
        f"<p>Expected beforehand of every seed, and what was seen:</p>\n<ul>\n{findings}</ul>\n"
        f"<pre>{html.escape(about['command'])}</pre>\n"
        f'<p class="about">{html.escape(settings)}</p>\n</section>\n'
    )
