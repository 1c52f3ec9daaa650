"""MODEL_CARD.md and the tables, of manifests that are written out here."""

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
PAGE = {"path": "web", "runtime": None, "note": "", "bytes": 2_000_000}
RUN = RunSpec(
    model="plainnet20", shortcut="none", stride_on="1x1", weights=None, freeze=(),
    dataset="folder:flowers", images=(2, 1), input_shape=(8, 8, 3),
    recipe_name="digits", recipe=RECIPES["digits"], execution=Execution(), seed=7,
    strategy="one_device", replicas=1,
)  # fmt: skip


def manifest_of(provenance):
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
        "artifacts": {"int8": ARTIFACT, "web": PAGE},
        "files": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("provenance", "lines"),
    [
        (
            Provenance("plainnet20", run=RUN),
            [
                "Plain net, 2 classes, trained on folder:flowers by keras_resnet.",
                f"| recipe | digits: {RUN.recipe.epochs} epochs of sgd, ",
                "| random seed | 7 |",
                "| licence | whoever trained it decides; ",
            ],
        ),
        (
            Provenance("resnet50", "resnet50/keras", None, "Keras", "MIT", 74.9),
            [
                "Residual net, 2 classes, with weights of Keras.",
                "| data | of its publisher |",
                "| weights | resnet50/keras |\n| published_top1 | 74.9 |\n",
                "| licence | MIT |",
            ],
        ),
        (
            Provenance("mine.pth", "mine.pth"),
            ["with weights of mine.pth.", "| licence | not known |"],
        ),
    ],
)
def test_where_a_network_comes_from(provenance, lines):
    text = card.model_card(manifest_of(provenance))
    for line in lines:
        assert line in text
    assert "{" not in text.split("## Use")[0]


def test_artifacts_and_classes_of_a_card():
    text = card.model_card(manifest_of(Provenance("net", "net.pth")))
    assert "| `int8.tflite` | 0.09 MB | 289 of 360 | 99.44% | -0.49 to +1.04 " in text
    assert "| `web` | 2.00 MB | see its `.tflite` files | | | |" in text
    assert "| do\\_g | 200 of 260 | 76.9% |" in text
    assert "to cover 16x16 pixels" in text


def test_tables():
    manifest = manifest_of(Provenance("net", "net.pth"))
    lines = [" ".join(x.split()) for x in card.closing_table(manifest).splitlines()]
    assert lines == [
        "artifact size right top-1 agreement difference latency ms",
        "Keras 290 of 360 80.56% 1.94",
        "int8.tflite 0.09 MB 289 of 360 80.28% 99.44% 4.2e-02 0.07",
        "web 2.00 MB",
    ]
    row = {
        "artifact": "int8", "threads": 2, "batch": 16, "median_ms": 0.075,
        "p95_ms": 1.239, "images_per_s": 8780.66, "peak_mib": 818.4, "start_ms": 43.2,
    }  # fmt: skip
    measured = copy.deepcopy(manifest) | {"latency": {"machine": "M", "rows": [row]}}
    assert " ".join(card.latency_table(measured).splitlines()[1].split()) == (
        "int8 2 16 0.07 1.24 8780.7 818 43 0.09"
    )
    assert card.latency_table(measured) in card.model_card(measured)
