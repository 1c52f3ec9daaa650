"""Command that measures latency, memory and start-up time of a bundle's artifacts.

    python -m export.latency artifacts/demo

Each artifact runs in two processes, one with a single thread, the other with a thread
for each CPU. The processes are called in turn, never two at a time. Thus they meet the
same load and CPU clock and do not slow each other down. The command adds the results to
manifest.json and MODEL_CARD.md, and draws latency.png.

The command can run on a device, because it needs only LiteRT and NumPy. It skips
artifacts whose runtime is missing, and the figure if matplotlib is missing.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence

from keras_resnet import support

from . import device


def draw_figure(rows: Sequence[device.LatencyRow], manifest: device.Manifest) -> bytes:
    """Returns a PNG of accuracy against latency at the first batch size in `rows`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    batch, threads = rows[0]["batch"], max(row["threads"] for row in rows)
    num_images = manifest["evaluation"]["images"]
    drawn_rows = [r for r in rows if (r["batch"], r["threads"]) == (batch, threads)]
    for row, marker in zip(drawn_rows, itertools.cycle("osD^vP*Xdh")):
        entry = manifest["artifacts"][row["artifact"]]
        top1 = entry["right"] / num_images
        interval = device.wilson_interval(entry["right"], num_images)
        error_bars = [[100 * abs(bound - top1)] for bound in interval]
        latency, size = f"{row['median_ms']:.3g} ms", f"{entry['bytes'] / 1e6:.3g} MB"
        axes.errorbar(
            row["median_ms"], 100 * top1, yerr=error_bars, fmt=marker, markersize=8,
            elinewidth=0.8, capsize=3, alpha=0.75,
            label=f"{row['artifact']}: {latency}, {size}",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel(f"median latency (ms) of {batch} image(s), {threads} thread(s)")
    axes.set_ylabel(f"top-1 accuracy (%) on {num_images} images, 95 % interval")
    # Without `parse_math`, a name with two dollar signs would be parsed as a formula.
    title = support.to_printable(f"{manifest['name']} on {support.describe_machine()}")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3, which="both")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return support.to_png(figure)


def main(argv: Sequence[str] | None = None) -> int | None:
    """Measures a bundle and records the results. Returns the exit status."""
    parser = support.CommandParser(prog="python -m export.latency")
    parser.description = "Measures latency and memory of every artifact of a bundle."
    parser.add_argument("bundle", help="folder that python -m export wrote")
    parser.add_argument(
        "--rounds", type=_parse_positive, default=30,
        help="number of timed calls per artifact and batch size (default 30)",
    )  # fmt: skip
    parser.add_argument(
        "--batches", type=_parse_batch_sizes, default=(1, 16),
        help="comma-separated batch sizes (default 1,16)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_parse_threads, default=(1, None),
        help="comma-separated numbers of threads; 'all' is one per CPU (default 1,all)",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="print tracebacks")
    args = parser.parse_args(argv)
    return support.report_errors(lambda: _measure(args), args.debug)


def _measure(args: argparse.Namespace) -> None:
    folder, rounds = args.bundle, args.rounds
    manifest = device.read_manifest(folder)
    count = len(manifest["artifacts"])
    print(f"Calling each of {count} artifacts {rounds} times in turn", flush=True)
    rows, skipped = device.measure_latency(folder, args.batches, args.threads, rounds)
    for name, reason in skipped.items():
        print(f"Not measured: {name} ({reason})")
    if not rows:
        raise support.InputError("No artifact could be measured, for the reasons above")
    manifest["latency"] = {"machine": support.describe_machine(), "rows": rows}
    print(device.format_latency(manifest))
    try:
        png = draw_figure(rows, manifest)
    except ModuleNotFoundError:
        print("latency.png is not drawn, because matplotlib is not installed")
    else:
        support.write_file(os.path.join(folder, "latency.png"), png)
    device.write_description(folder, manifest)


def _parse_positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to 1,000,000. Received: {text!r}"
        )
    return int(text)


def _parse_batch_sizes(text: str) -> tuple[int, ...]:
    return tuple(map(_parse_positive, text.split(",")))


def _parse_threads(text: str) -> tuple[int | None, ...]:
    return tuple(None if n == "all" else _parse_positive(n) for n in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
