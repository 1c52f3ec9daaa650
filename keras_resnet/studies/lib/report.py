"""The page of a study, or of all: figure, what it shows, the command."""

import base64
import dataclasses
import html
import json
import os
from typing import Any

from keras_resnet.support import InputError, commit, machine, versions, write_file


@dataclasses.dataclass(frozen=True)
class Section:
    """A study on a page.

    Attributes:
        title: its heading.
        claim: what the paper says and what the figure shows.
        found: a list of `keras_resnet.studies.study.Finding`.
        picture: bytes of a PNG.
        about: what `write_about` noted.
        table: path of the CSV.
        budget: images, seeds and epochs, in words.
    """

    title: str
    claim: str
    found: list
    picture: bytes
    about: dict[str, Any]
    table: str
    budget: str


def write_about(folder, command, options):
    """Writes `study.json`: how the table was made; returns its contents."""
    about = {
        "command": command,
        "options": dataclasses.asdict(options),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    write_file(os.path.join(folder, "study.json"), json.dumps(about, indent=2) + "\n")
    return about


def read_about(folder, kind):
    """Returns what `write_about` wrote, and the options in it.

    Args:
        folder: of the study.
        kind: class of the options.

    Raises:
        InputError: it is not there, or damaged.
    """
    path = os.path.join(folder, "study.json")
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        return about, kind(**about["options"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}, which says how the table beside it was made, is missing or damaged"
        ) from None


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff }
img { max-width: 100%; height: auto }
pre { background: #f4f4f4; padding: .6rem .8rem; overflow-x: auto }
li { margin: .4rem 0 }
.yes { color: #00694a; font-weight: bold } .no { color: #a33c00; font-weight: bold }
.about { color: #666; font-size: .85rem }
"""


def render_page(title, sections):
    """Returns an HTML page that holds its pictures and needs no other file.

    Args:
        title: of the page.
        sections: a list of `Section`s; of several there is a table of contents.
    """
    contents = "".join(
        f'<li><a href="#{number}">{html.escape(each.title)}</a>: '
        f"{sum(one.holds for one in each.found)} of {len(each.found)} borne out</li>"
        for number, each in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        + (f"<ol>{contents}</ol>\n" if len(sections) > 1 else "")
        + "".join(
            _section(each, number, len(sections) > 1)
            for number, each in enumerate(sections)
        )
        + "</html>\n"
    )


def _section(section, number, heading):
    about = section.about
    picture = base64.b64encode(section.picture).decode()
    found = "".join(
        f'<li>{html.escape(each.expected)}<br><span class="{"yes" if each.holds else "no"}">'
        f"{'Borne out' if each.holds else 'Not borne out'}</span>: "
        f"{html.escape(each.seen)}</li>\n"
        for each in section.found
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
        f"<p>Expected beforehand of every seed, and what was seen:</p>\n<ul>\n{found}</ul>\n"
        f"<pre>{html.escape(about['command'])}</pre>\n"
        f'<p class="about">{html.escape(settings)}</p>\n</section>\n'
    )
