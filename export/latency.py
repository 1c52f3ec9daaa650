"""How long each artifact of a bundle takes, with what memory, and to start.

    python -m export.latency artifacts/demo

Each runs in a process of its own, with one thread and with one for each CPU. All of them
are loaded, then called in turn, so that all meet the same noise and the same clock of
the CPU, and one after the other, so that none disturbs the next. The medians go into
the bundle's manifest.json and MODEL_CARD.md, and with the accuracies into latency.png.

Like `export.verify` it needs LiteRT and NumPy alone, so that a device can measure
itself. Artifacts whose runtime is missing are left out, and the picture needs
matplotlib.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence

from keras_resnet.support import InputError, machine, to_png, write_file

from .device import (
    LatencyRow,
    Manifest,
    latency_table,
    measure,
    read_manifest,
    wilson,
    write_description,
)


def draw(rows: Sequence[LatencyRow], manifest: Manifest) -> bytes:
    """Draws accuracy against the latency of one image with all threads, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    batch, threads = rows[0]["batch"], max(row["threads"] for row in rows)
    total = manifest["evaluation"]["images"]
    shown = [r for r in rows if (r["batch"], r["threads"]) == (batch, threads)]
    for row, marker in zip(shown, itertools.cycle("osD^vP*Xdh")):
        entry = manifest["artifacts"][row["artifact"]]
        share = entry["right"] / total
        ends = [[100 * abs(end - share)] for end in wilson(entry["right"], total)]
        time, size = f"{row['median_ms']:.3g} ms", f"{entry['bytes'] / 1e6:.3g} MB"
        axes.errorbar(
            row["median_ms"], 100 * share, yerr=ends, fmt=marker, markersize=8,
            elinewidth=0.8, capsize=3, alpha=0.75,
            label=f"{row['artifact']}: {time}, {size}",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel(f"median milliseconds for {batch} image(s), {threads} thread(s)")
    axes.set_ylabel(f"top-1 accuracy on {total} images, %, with 95 % interval")
    axes.set_title(f"{manifest['name']} on {machine()}")
    axes.grid(alpha=0.3, which="both")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return to_png(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures a bundle, enters and prints the table; status 1 on an error."""
    parser = argparse.ArgumentParser(prog="python -m export.latency")
    parser.description = "Measures every artifact of a bundle, in turn."
    parser.add_argument("bundle", help="folder that python -m export wrote")
    parser.add_argument("--rounds", type=_positive, default=30, help="calls of each")
    parser.add_argument(
        "--batches", type=_batches, default=(1, 16), help="images in a call: 1,16"
    )
    parser.add_argument(
        "--threads", type=_threads, default=(1, None), help="threads: 1,all"
    )
    given = parser.parse_args(argv)
    folder, rounds = given.bundle, given.rounds
    try:
        manifest = read_manifest(folder)
        count = len(manifest["artifacts"])
        print(f"measuring {count} artifacts in turn, each {rounds} times", flush=True)
        rows, missing = measure(folder, given.batches, given.threads, rounds)
        for name, reason in missing.items():
            print(f"not measured: {name} ({reason})")
        if not rows:
            raise InputError("No artifact of the bundle could be measured")
        manifest["latency"] = {"machine": machine(), "rows": rows}
        print(latency_table(manifest))
        try:
            picture = draw(rows, manifest)
        except ModuleNotFoundError:
            print("no picture: matplotlib is not installed")
        else:
            write_file(os.path.join(folder, "latency.png"), picture)
        write_description(folder, manifest)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least 1. Received: {text!r}"
        )
    return int(text)


def _batches(text: str) -> tuple[int, ...]:
    return tuple(map(_positive, text.split(",")))


def _threads(text: str) -> tuple[int | None, ...]:
    return tuple(None if n == "all" else _positive(n) for n in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
