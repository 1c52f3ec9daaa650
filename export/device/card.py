"""What a bundle says of itself: its tables, MODEL_CARD.md and manifest.json."""

import os

from keras_resnet.spec import Provenance
from keras_resnet.support import format_table, write_file, write_json

from .clients import describe_use
from .labels import LABELS_FILE, label_lines
from .manifest import ArtifactRow, Folder, Manifest, describe_files

_CARD = """# {name}

{kind}, {classes} classes, {made}.

| | |
| --- | --- |
| input | `image`, uint8 ({height}, {width}, {channels}), raw pixels from 0 to 255; normalisation is inside |
| images of other sizes | {interpolation} with antialiasing to cover {cover_height}x{cover_width} pixels, then the central {height}x{width} |
| output | `probabilities`, float32 ({classes}); the classes are in `labels.txt`, in order |
| data | {dataset} |
{history}
| licence | {licence} |
| accuracy | Keras model: {right} of {images} held-out images right, {accuracy:.2%} |

| artifact | size | right | same class as Keras | accuracy lost, 95 % interval | latency |
| --- | --- | --- | --- | --- | --- |
{rows}

Accuracy and agreement are over the same {images} held-out images. The latency is the
median of 30 calls with one image and all CPUs in one process, on {machine}.
{notes}
{latency}
## Limits

It knows only the classes above and names one of them for any image. It has been
checked on held-out images of {checked}, and on no others.{calibration}

{by_class}

## Use

In the folder of this file, with `pixels` a uint8 array (n, {height}, {width}, {channels}).
`keras-resnet-verify .` (from a checkout `python -m export.verify`) checks every file and
artifact again.

{use}
"""

_RECIPE = """\
| recipe | {run.recipe_name}: {recipe.epochs} epochs of {recipe.optimizer}, batch {recipe.batch_size}, learning rate {recipe.learning_rate}, weight decay {recipe.weight_decay} |
| random seed | {run.seed} |"""

# Number of classes that a card lists. If there are more, the worst ones are listed.
_LISTED = 20

# Files of a bundle that are not artifacts. The last three are not in every bundle.
_OTHERS = [LABELS_FILE, "check.npz", "MODEL_CARD.md"]
_OTHERS += ["latency.png", "quantization.csv", "quantization.png"]


def write_description(folder: Folder, manifest: Manifest) -> None:
    """Writes MODEL_CARD.md, and manifest.json with the sha256 of all other files.

    All other files of the bundle must exist. The manifest's `files` are set here.
    """
    write_file(os.path.join(folder, "MODEL_CARD.md"), model_card(manifest))
    names = [n for n in _OTHERS if os.path.exists(os.path.join(folder, n))]
    manifest["files"] = describe_files(folder, names)
    write_json(os.path.join(folder, "manifest.json"), manifest)


def model_card(manifest: Manifest) -> str:
    """Returns the card of a bundle, as Markdown."""
    preprocessing, evaluation = manifest["preprocessing"], manifest["evaluation"]
    artifacts = manifest["artifacts"].values()
    return _CARD.format(
        **preprocessing,
        **_describe_provenance(Provenance.from_settings(manifest["settings"])),
        name=manifest["name"],
        classes=len(manifest["classes"]),
        cover_height=round(preprocessing["height"] / preprocessing["crop"]),
        cover_width=round(preprocessing["width"] / preprocessing["crop"]),
        right=evaluation["keras_right"],
        images=evaluation["images"],
        accuracy=evaluation["keras_right"] / evaluation["images"],
        rows="\n".join(map(_describe_artifact, artifacts)),
        notes="".join(
            f"\n`{r['path']}`: {r['note']}.\n" for r in artifacts if r["note"]
        ),
        machine=manifest["machine"],
        latency=_describe_latency(manifest),
        checked=evaluation["dataset"],
        calibration=_describe_calibration(manifest),
        by_class=_describe_classes(manifest),
        use=describe_use(manifest),
    )


def _describe_provenance(provenance: Provenance) -> dict[str, str]:
    """The card's fields on where the network comes from."""
    run = provenance.run
    if run:
        return {
            "kind": "Plain net" if run.shortcut == "none" else "Residual net",
            "made": f"trained on {run.dataset} by keras_resnet",
            "dataset": run.dataset,
            "history": _RECIPE.format(run=run, recipe=run.recipe),
            "licence": provenance.licence
            or "whoever trained it decides; keras_resnet itself is Apache-2.0",
        }
    history = f"| weights | {provenance.weights} |"
    if provenance.published_top1 is not None:
        history += f"\n| published_top1 | {provenance.published_top1} |"
    return {
        "kind": "Residual net",
        "made": f"with weights of {provenance.publisher or provenance.weights}",
        "dataset": "of its publisher",
        "history": history,
        "licence": provenance.licence or "not known",
    }


def _describe_artifact(row: ArtifactRow) -> str:
    size = f"| `{row['path']}` | {row['bytes'] / 1e6:.2f} MB "
    if row["runtime"] is None:
        return size + "| see its `.tflite` files | | | |"
    low, high = row["loss_interval"]
    return size + (
        f"| {row['right']} of {row['images']} | {row['agreement']:.2%} "
        f"| {low:+.2f} to {high:+.2f} points | {row['latency_ms']:.2f} ms |"
    )


def _describe_latency(manifest: Manifest) -> str:
    if not manifest.get("latency"):
        return "\n`keras-resnet-latency .` measures more, on your own machine.\n"
    return (
        f"\nBy `keras-resnet-latency`, each in a process of its own, in turn, on "
        f"{manifest['latency']['machine']}:\n\n```\n{latency_table(manifest)}\n```\n\n"
        "![Latency against accuracy](latency.png)\n"
    )


def _describe_calibration(manifest: Manifest) -> str:
    calibration = manifest["calibration"]
    if calibration is None:
        return ""
    return (
        f" int8 was calibrated on {len(calibration['images'])} images of "
        f"{calibration['dataset']}, none of them among these."
    )


def _describe_classes(manifest: Manifest) -> str:
    """The Keras model's accuracy by class, as a table; of many, the worst."""
    counts = [manifest["evaluation"][f"{n}_by_class"] for n in ("right", "images")]
    named = zip(label_lines(manifest["classes"]), *counts, strict=True)
    rows = [row for row in named if row[2]]
    title = "Keras model, class by class:"
    if len(rows) > _LISTED:
        rows = sorted(rows, key=lambda row: row[1] / row[2])[:_LISTED]
        title = (
            f"The {_LISTED} classes that it names worst; manifest.json has them all:"
        )
    lines = [
        f"| {_escape(name)} | {right} of {images} | {right / images:.1%} |"
        for name, right, images in rows
    ]
    return "\n".join([title, "", "| class | right | |", "| --- | --- | --- |", *lines])


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\|`*_<[" else c for c in text)


def closing_table(manifest: Manifest) -> str:
    """Returns each artifact beside the Keras model, as a table."""
    evaluation = manifest["evaluation"]
    count = evaluation["images"]

    def counted(right: int) -> tuple[str, str]:
        return f"{right} of {count}", f"{right / count:.2%}"

    keras = *counted(evaluation["keras_right"]), "", ""
    head = "artifact", "size", "right", "top-1", "agreement", "difference", "latency ms"
    rows: list[tuple[str, ...]] = [head]
    rows.append(("Keras", "", *keras, f"{evaluation['keras_latency_ms']:.2f}"))
    for row in manifest["artifacts"].values():
        cells = [row["path"], f"{row['bytes'] / 1e6:.2f} MB"]
        if row["runtime"] is not None:
            numbers = f"{row['agreement']:.2%} {row['difference']:.1e} {row['latency_ms']:.2f}"
            cells += [*counted(row["right"]), *numbers.split()]
        rows.append((*cells, *[""] * (7 - len(cells))))
    return format_table(rows)


def latency_table(manifest: Manifest) -> str:
    """Returns the rows of `timing.measure`, as a table."""
    units = ("median ms", "p95 ms", "images/s", "peak MiB", "start ms", "size MB")
    rows = [["artifact", "threads", "batch", *units]]
    for row in manifest["latency"]["rows"]:
        size = manifest["artifacts"][row["artifact"]]["bytes"] / 1e6
        numbers = (
            f"{row['threads']} {row['batch']} {row['median_ms']:.2f} {row['p95_ms']:.2f} "
            f"{row['images_per_s']:.1f} {row['peak_mib']:.0f} {row['start_ms']:.0f} {size:.2f}"
        )
        rows.append([row["artifact"], *numbers.split()])
    return format_table(rows)
