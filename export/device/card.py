"""Printed tables, and the files MODEL_CARD.md, labels.txt and manifest.json."""

import collections
import os
from collections.abc import Iterable

from keras_resnet.spec import Provenance
from keras_resnet.support import (
    StrPath,
    format_table,
    to_printable,
    write_file,
    write_json,
)

from .clients import describe_use
from .manifest import ArtifactRow, Manifest, describe_files

_CARD = """# {name}

{kind} with {classes} classes, {made}.

| | |
| --- | --- |
| input | `image`: uint8, shape (n, {height}, {width}, {channels}), raw pixel values from 0 to 255; the network normalises them itself |
| preprocessing | {interpolation} resizing with antialiasing until the image covers {cover_height}x{cover_width} pixels, then the central {height}x{width} crop |
| output | `probabilities`: float32, shape (n, {classes}), in the order of the classes in `labels.txt` |
| training data | {dataset} |
{history}
| licence | {licence} |
| accuracy | the Keras model classifies {correct} of {images} test images correctly, {accuracy:.2%} |

| artifact | size | correct | agreement | accuracy loss, 95 % interval | latency |
| --- | --- | --- | --- | --- | --- |
{rows}

All rows are measured on the same {images} test images. *Agreement* is the percentage of images for which the artifact predicts the same class as the Keras model. *Accuracy loss* is the Keras model's accuracy minus the artifact's, in percentage points. *Latency* is the median time of 30 calls with one image. It was measured at export, in one process that used all CPUs of this machine: {machine}.
{notes}
{latency}
## Limitations

The network predicts one of its {classes} classes for any image, even if the image shows none of them. It was tested only on images of {test_dataset}; its accuracy on other images is unknown.{calibration}

{by_class}

## Use

Run the code in the folder of this file. `pixels` is a uint8 array of shape (n, {height}, {width}, {channels}). `keras-resnet-verify .` checks every file and every artifact again (in a checkout of keras_resnet, `python -m export.verify .`).

{use}
"""

_RECIPE = """\
| recipe | {run.recipe_name}: {recipe.epochs} epochs of {recipe.optimizer}, batch {recipe.batch_size}, learning rate {recipe.learning_rate}, weight decay {recipe.weight_decay} |
| random seed | {run.seed} |"""

# Maximum number of classes in the card's table, which lists the least accurate ones.
_MAX_LISTED_CLASSES = 20

# Files of a bundle besides artifacts and manifest.json. The last three are optional.
LABELS_FILE = "labels.txt"
OTHER_FILES = [LABELS_FILE, "check.npz", "MODEL_CARD.md"]
OTHER_FILES += ["latency.png", "quantization.csv", "quantization.png"]


def write_description(folder: StrPath, manifest: Manifest) -> None:
    """Writes MODEL_CARD.md, and manifest.json with the sha256 of all other files.

    All other files of the bundle must exist already. Sets `manifest["files"]`.
    """
    write_file(os.path.join(folder, "MODEL_CARD.md"), format_card(manifest))
    names = [n for n in OTHER_FILES if os.path.exists(os.path.join(folder, n))]
    manifest["files"] = describe_files(folder, names)
    write_json(os.path.join(folder, "manifest.json"), manifest)


def make_label_lines(classes: Iterable[str]) -> tuple[str, ...]:
    r"""Returns one unique line of labels.txt for each class name.

    Replaces the characters that `to_printable` escapes, such as line breaks. Repeated
    names get numbers: `crane`, `crane (2)`. Other names do not change, even if they
    have commas.
    """
    lines = [to_printable(name) for name in classes]
    taken_lines, counts = set(lines), collections.Counter[str]()
    for i, line in enumerate(lines):
        counts[line] += 1
        if counts[line] > 1:
            while (numbered_line := f"{line} ({counts[line]})") in taken_lines:
                counts[line] += 1
            taken_lines.add(numbered_line)
            lines[i] = numbered_line
    return tuple(lines)


def format_card(manifest: Manifest) -> str:
    """Returns the text of MODEL_CARD.md."""
    preprocessing, evaluation = manifest["preprocessing"], manifest["evaluation"]
    artifacts = manifest["artifacts"].values()
    settings = {
        name: _escape(value) if isinstance(value, str) else value
        for name, value in manifest["settings"].items()
    }
    return _CARD.format(
        **preprocessing,
        **_describe_provenance(Provenance.from_settings(settings)),
        name=_escape(manifest["name"]),
        classes=len(manifest["classes"]),
        cover_height=round(preprocessing["height"] / preprocessing["crop"]),
        cover_width=round(preprocessing["width"] / preprocessing["crop"]),
        correct=evaluation["keras_right"],
        images=evaluation["images"],
        accuracy=evaluation["keras_right"] / evaluation["images"],
        rows="\n".join(map(_describe_artifact, artifacts)),
        notes="".join(
            f"\n`{r['path']}`: {_escape(r['note'])}.\n" for r in artifacts if r["note"]
        ),
        machine=_escape(manifest["machine"]),
        latency=_describe_latency(manifest),
        test_dataset=_escape(evaluation["dataset"]),
        calibration=_describe_calibration(manifest),
        by_class=_describe_classes(manifest),
        use=describe_use(manifest),
    )


def _describe_provenance(provenance: Provenance) -> dict[str, str]:
    """Returns the fields of `_CARD` about the origin of the network, by field name."""
    run = provenance.run
    if run:
        return {
            "kind": "Plain network" if run.shortcut == "none" else "Residual network",
            "made": f"trained on {run.dataset} by keras_resnet",
            "dataset": run.dataset,
            "history": _RECIPE.format(run=run, recipe=run.recipe),
            "licence": provenance.licence
            or "chosen by whoever trained the network; keras_resnet itself is Apache-2.0",
        }
    rows = f"| weights | {provenance.weights} |"
    if provenance.published_top1 is not None:
        rows += f"\n| published top-1 accuracy | {provenance.published_top1} % |"
    return {
        "kind": "Residual network",
        "made": f"with weights from {provenance.publisher or provenance.weights}",
        "dataset": "not recorded; ask the publisher of the weights",
        "history": rows,
        "licence": provenance.licence or "unknown",
    }


def _describe_artifact(row: ArtifactRow) -> str:
    row_start = f"| `{row['path']}` | {row['bytes'] / 1e6:.2f} MB "
    if row["runtime"] is None:
        return row_start + "| see the `.tflite` files | | | |"
    low, high = row["loss_interval"]
    return row_start + (
        f"| {row['right']} of {row['images']} | {row['agreement']:.2%} "
        f"| {low:+.2f} to {high:+.2f} points | {row['latency_ms']:.2f} ms |"
    )


def _describe_latency(manifest: Manifest) -> str:
    if not manifest.get("latency"):
        return "\n`keras-resnet-latency .` measures speed and memory on your machine.\n"
    return (
        f"\n`keras-resnet-latency` called the artifacts in turn, each in its own process, on {_escape(manifest['latency']['machine'])}:\n\n"
        f"```\n{format_latency(manifest)}\n```\n\n![Latency against accuracy](latency.png)\n"
    )


def _describe_calibration(manifest: Manifest) -> str:
    calibration = manifest["calibration"]
    if calibration is None:
        return ""
    return f" Quantisation was calibrated on {len(calibration['images'])} images of {_escape(calibration['dataset'])}, all different from the test images."


def _describe_classes(manifest: Manifest) -> str:
    """Returns a table of the Keras model's accuracy by class."""
    evaluation = manifest["evaluation"]
    counts = evaluation["right_by_class"], evaluation["images_by_class"]
    all_rows = zip(make_label_lines(manifest["classes"]), *counts, strict=True)
    rows = [row for row in all_rows if row[2]]  # Omits classes without test images.
    title = "Accuracy of the Keras model by class:"
    if len(rows) > _MAX_LISTED_CLASSES:
        rows = sorted(rows, key=lambda row: row[1] / row[2])[:_MAX_LISTED_CLASSES]
        title = f"The {_MAX_LISTED_CLASSES} least accurate classes (manifest.json lists all):"
    lines = [
        f"| {_escape(name)} | {correct} of {total} | {correct / total:.1%} |"
        for name, correct, total in rows
    ]
    return "\n".join([title, "", "| class | correct | |", "|---|---|---|", *lines])


def _escape(text: str) -> str:
    """Returns a text as one line of Markdown in which no character is special."""
    return "".join(f"\\{c}" if c in "\\|`*_<[&~" else c for c in to_printable(text))


def format_summary(manifest: Manifest) -> str:
    """Returns a table of accuracy, agreement and latency of all artifacts."""
    evaluation = manifest["evaluation"]
    num_images = evaluation["images"]

    def accuracy_cells(num_correct: int) -> tuple[str, str]:
        return f"{num_correct} of {num_images}", f"{num_correct / num_images:.2%}"

    keras_cells = *accuracy_cells(evaluation["keras_right"]), "", ""
    header = "artifact", "size", "correct", "top-1", "agreement", "difference", "latency ms"  # fmt: skip
    rows: list[tuple[str, ...]] = [header]
    rows.append(("Keras", "", *keras_cells, f"{evaluation['keras_latency_ms']:.2f}"))
    for row in manifest["artifacts"].values():
        cells = [row["path"], f"{row['bytes'] / 1e6:.2f} MB"]
        if row["runtime"] is not None:
            number_cells = f"{row['agreement']:.2%} {row['difference']:.1e} {row['latency_ms']:.2f}"
            cells += [*accuracy_cells(row["right"]), *number_cells.split()]
        rows.append((*cells, *[""] * (7 - len(cells))))
    return format_table(rows)


def format_latency(manifest: Manifest) -> str:
    """Returns a table of the measurements in `manifest["latency"]`."""
    columns = ("median ms", "p95 ms", "images/s", "peak MiB", "start ms", "size MB")
    rows = [["artifact", "threads", "batch", *columns]]
    for row in manifest["latency"]["rows"]:
        size = manifest["artifacts"][row["artifact"]]["bytes"] / 1e6
        number_cells = (
            f"{row['threads']} {row['batch']} {row['median_ms']:.2f} {row['p95_ms']:.2f} "
            f"{row['images_per_s']:.1f} {row['peak_mib']:.0f} {row['start_ms']:.0f} {size:.2f}"
        )
        rows.append([row["artifact"], *number_cells.split()])
    return format_table(rows)
