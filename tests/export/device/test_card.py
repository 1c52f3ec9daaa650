"""MODEL_CARD.md and printed tables for a manifest that this file defines."""

import copy

import pytest

from export.device import card
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
WEB_ARTIFACT = {"path": "web", "runtime": None, "note": "", "bytes": 2_000_000}
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
    assert "covers 16x16 pixels" in text


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
