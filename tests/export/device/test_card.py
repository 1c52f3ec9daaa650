"""MODEL_CARD.md and printed tables for a manifest that this file defines."""

import copy
import json
import pathlib
import re
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.device import card
from export.device.card import LABELS_FILE, make_label_lines
from keras_resnet.spec import RECIPES, Execution, Provenance, RunSpec

ARTIFACT = {
    "path": "int8.tflite",
    "runtime": "LiteRT",
    "note": "",
    "bytes": 93418,
    "right": 289,
    "images": 360,
    "agreement": 0.99444,
    "loss_interval": (-0.489, 1.041),
    "difference": 0.0418,
    "latency_ms": 0.075,
}
WEB_ARTIFACT = {
    "path": "web", "runtime": None, "note": "only for browsers", "bytes": 2_000_000,
}  # fmt: skip
RUN_SPEC = RunSpec(
    model="plainnet20", shortcut="none", stride_on="1x1", weights=None, freeze=(),
    dataset="folder:flowers", images=(2, 1), input_shape=(8, 8, 3),
    recipe_name="digits", recipe=RECIPES["digits"], execution=Execution(), seed=7,
    strategy="one_device", replicas=1,
)  # fmt: skip


def make_manifest(provenance):
    return {
        "format": 2,
        "name": "net",
        "classes": ["cat", "do_g"],
        "settings": provenance.to_settings(),
        "preprocessing": {
            "height": 8, "width": 8, "channels": 3, "crop": 0.5,
            "interpolation": "bilinear",
        },
        "evaluation": {
            "dataset": "folder:flowers", "images": 360, "keras_right": 290,
            "right_by_class": [90, 200], "images_by_class": [100, 260],
            "keras_latency_ms": 1.94,
        },
        "machine": "Linux",
        "calibration": None,
        "artifacts": {"int8": ARTIFACT, "web": WEB_ARTIFACT},
        "files": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("provenance", "lines"),
    [
        (
            Provenance("plainnet20", run=RUN_SPEC),
            [
                "Plain network with 2 classes, trained on folder:flowers by keras_resnet.",
                f"| recipe | digits: {RUN_SPEC.recipe.epochs} epochs of sgd, ",
                "| random seed | 7 |",
                "keras_resnet itself is Apache-2.0",
            ],
        ),
        (
            Provenance("resnet50", "resnet50/keras", None, "Keras", "MIT", 74.9),
            [
                "Residual network with 2 classes, with weights from Keras.",
                "| training data | not recorded",
                "| weights | resnet50/keras |\n| published top-1 accuracy | 74.9 % |\n",
                "| licence | MIT |",
            ],
        ),
        (
            Provenance("mine.pth", "mine.pth"),
            ["with weights from mine.pth.", "| licence | unknown |"],
        ),
    ],
)
def test_card_describes_provenance(provenance, lines):
    text = card.format_card(make_manifest(provenance))
    for line in lines:
        assert line in text
    assert "{" not in text.split("## Use")[0]


def test_card_lists_artifacts_and_classes():
    text = card.format_card(make_manifest(Provenance("net", "net.pth")))
    assert "| `int8.tflite` | 0.09 MB | 289 of 360 | 99.44% | -0.49 to +1.04 " in text
    assert "| `web` | 2.00 MB | see the `.tflite` files | | | |" in text
    assert "| do\\_g | 200 of 260 | 76.9% |" in text
    assert "\n`web`: only for browsers.\n" in text and "`int8.tflite`:" not in text
    assert "covers 16x16 pixels" in text


def test_card_lists_the_least_accurate_of_many_classes():
    """Of 22 classes with test images, the two most accurate ones are not listed."""
    manifest = make_manifest(Provenance("net", "net.pth"))
    counts = {"right_by_class": [*range(22), 0], "images_by_class": [22] * 22 + [0]}
    manifest |= {"classes": [f"class {i}" for i in range(23)]}
    manifest |= {"evaluation": manifest["evaluation"] | counts}
    text = card.format_card(manifest)
    assert "The 20 least accurate classes (manifest.json lists all):" in text
    rows = [line for line in text.splitlines() if line.startswith("| class ")]
    assert rows[1:] == [
        f"| class {i} | {i} of 22 | {100 * i / 22:.1f}% |" for i in range(20)
    ]


# Class names with frequent characters that JSON or Markdown must escape.
CHARACTERS = st.sampled_from("\n\r\u2028\0,\"'|\\`*_<[&~ ") | st.characters(
    codec="utf-8"
)
NAMES = st.lists(CHARACTERS, max_size=6).map("".join)


@given(st.lists(NAMES, min_size=2, max_size=8))
def test_any_class_names_survive_in_the_card_and_in_the_manifest(names):
    manifest = make_manifest(Provenance("net", "net.pth"))
    counts = {"right_by_class": [1] * len(names), "images_by_class": [4] * len(names)}
    manifest |= {"classes": names, "evaluation": manifest["evaluation"] | counts}
    with tempfile.TemporaryDirectory() as folder:
        for name in (LABELS_FILE, "check.npz"):
            pathlib.Path(folder, name).touch()
        card.write_description(folder, manifest)
        text = pathlib.Path(folder, "MODEL_CARD.md").read_text(encoding="utf-8")
        content = pathlib.Path(folder, "manifest.json").read_text(encoding="utf-8")
    assert json.loads(content)["classes"] == names
    rows = re.findall(r"(?m)^\| (.*) \| 1 of 4 \| 25\.0% \|$", text)
    # In Markdown, a backslash makes the following punctuation mark literal.
    special = re.compile(r"\\(.)|[|`*_<\[&~]")
    for row in rows:
        assert all(match[1] for match in special.finditer(row)), row
    unescaped_rows = [re.sub(r"\\(.)", r"\1", row) for row in rows]
    assert unescaped_rows == list(make_label_lines(names))


# Texts that would end a table row, start a section, or run code in a browser.
INJECTIONS = st.sampled_from(
    ["a | b", "x\n\n# Title", "<script>alert(1)</script>", "`rm`", "[a](http://b)",
     "![a](http://b)", "&lt;", "\x1b[2J", "\u202egnp", "```\n", "{name}", "%s"]
)  # fmt: skip


@given(st.lists(INJECTIONS, min_size=6, max_size=6))
def test_no_text_of_a_manifest_is_special_in_the_card(texts):
    dataset, name, machine, note, licence, weights = texts
    provenance = Provenance("net", weights, None, None, licence)
    manifest = make_manifest(provenance) | {"name": name, "machine": machine}
    manifest["evaluation"]["dataset"] = dataset
    manifest["calibration"] = {"images": [1], "dataset": dataset}
    manifest["artifacts"] = {"int8": ARTIFACT | {"note": note}}
    manifest["latency"] = {"machine": machine, "rows": []}
    text = card.format_card(manifest)
    harmless_text = card.format_card(
        make_manifest(Provenance("net", "w", None, None, "l"))
        | {"artifacts": {"int8": ARTIFACT | {"note": "n"}}}
        | {"calibration": {"images": [1], "dataset": "d"}}
        | {"latency": {"machine": "m", "rows": []}}
    )
    assert len(text.splitlines()) == len(harmless_text.splitlines())
    literal_text = re.sub(r"\\.", "", text)  # Removes the escaped characters.
    for pattern in (r"\|", "`", "<", r"\[", "&", "\x1b", "\u202e", "(?m)^#"):
        expected = len(re.findall(pattern, re.sub(r"\\.", "", harmless_text)))
        assert len(re.findall(pattern, literal_text)) == expected, pattern


def test_printed_tables_are_rounded():
    manifest = make_manifest(Provenance("net", "net.pth"))
    lines = [
        " ".join(line.split()) for line in card.format_summary(manifest).splitlines()
    ]
    assert lines == [
        "artifact size correct top-1 agreement difference latency ms",
        "Keras 290 of 360 80.56% 1.94",
        "int8.tflite 0.09 MB 289 of 360 80.28% 99.44% 4.2e-02 0.07",
        "web 2.00 MB",
    ]
    row = {
        "artifact": "int8", "threads": 2, "batch": 16, "median_ms": 0.075,
        "p95_ms": 1.239, "images_per_s": 8780.66, "peak_mib": 818.4, "start_ms": 43.2,
    }  # fmt: skip
    measured_manifest = copy.deepcopy(manifest) | {
        "latency": {"machine": "M", "rows": [row]}
    }
    assert " ".join(card.format_latency(measured_manifest).splitlines()[1].split()) == (
        "int8 2 16 0.07 1.24 8780.7 818 43 0.09"
    )
    assert card.format_latency(measured_manifest) in card.format_card(measured_manifest)
