"""Functions that benchmarks share: flags, alternating measurements, result files.

A benchmark compares sides, such as this package ("ours") and a peer. Every round
measures each side once. Other load on the machine slows all sides of a round, so ratios
within a round are more reliable than times.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import time
from importlib import metadata

from absl import flags

from keras_resnet import support

RESULTS = os.path.join(os.path.dirname(__file__), "results")


def run(main, required=(), **options):
    """Runs a benchmark with the values of command-line flags.

    Args:
        main: Function that receives the values of the flags, in order.
        required: Names of the flags without a default.
        **options: Default and description of each flag.
    """
    for name, (default, description) in options.items():
        if isinstance(default, int):
            flags.DEFINE_integer(name, default, description, min(default, 1))
        else:
            flags.DEFINE_string(name, default, description, required=name in required)
    support.run_command(lambda argv: main(*(flags.FLAGS[n].value for n in options)))


def call_in_turn(sides, rounds):
    """Calls functions in turn (A B A B ...) and returns lists of results by name."""
    results = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            results[name].append(side())
    return results


def time_turns(sides, rounds, between=lambda: None):
    """Returns the times of each side in seconds, one for each round, by name.

    Args:
        sides: Functions without arguments, by name.
        rounds: Number of rounds. One more round is made first, to warm up traces and
            caches. Its times are not returned.
        between: Function to call before each side, outside the measured time.
    """

    def time_side(side):
        between()
        begin = time.perf_counter()
        side()
        return time.perf_counter() - begin

    sides = {name: functools.partial(time_side, side) for name, side in sides.items()}
    return {name: t[1:] for name, t in call_in_turn(sides, rounds + 1).items()}


def run_scripts(sides, rounds, **options):
    """Runs scripts in other Python processes in turn.

    Args:
        sides: Python interpreter and script, by name. The last line printed by a
            script must be a JSON list.
        rounds: Number of runs of each script.
        **options: Arguments of `subprocess.run`.

    Returns:
        A dict from side to columns. Column i has entry i of the list in every round.
    """
    options |= {"capture_output": True, "text": True}

    def run_script(python, code):
        process = subprocess.run([python, "-c", code], check=True, **options)
        return json.loads(process.stdout.splitlines()[-1])

    calls = {name: functools.partial(run_script, *side) for name, side in sides.items()}
    results = call_in_turn(calls, rounds)
    return {name: list(zip(*rows, strict=True)) for name, rows in results.items()}


def isolate(make_side, *args):
    """Starts a side in a separate process, which waits until its turn.

    Settings of TensorFlow or the memory allocator then do not affect other sides. The
    process calls `make_side(*args)`, which must be picklable, to get a function without
    arguments. The returned `side()` runs that function in the process and waits until
    it ends. It raises `EOFError` if the function fails.
    """
    context = multiprocessing.get_context("spawn")
    pipe, process_pipe = context.Pipe()
    context.Process(
        target=_serve, args=(process_pipe, make_side, args), daemon=True
    ).start()
    process_pipe.close()

    def side():
        pipe.send(None)
        pipe.recv()

    return side


def _serve(pipe, make_side, args):
    side = make_side(*args)
    # The loop ends when the other end of the pipe is closed.
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            side()
            pipe.send(None)


def median_ms(times, parts=1):
    """Returns the median of times in seconds, divided by `parts`, in milliseconds."""
    return round(1000 * statistics.median(times) / parts, 1)


def summarise_ratios(numerators, denominators, column="peer/ours"):
    """Returns the median, lowest and highest ratio of all rounds, by column name."""
    round_ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    columns = {column: statistics.median, "lowest": min, "highest": max}
    return {name: round(reduce(round_ratios), 3) for name, reduce in columns.items()}


def make_row(times, peer, parts=1):
    """Returns a result row that compares "ours" with one peer.

    Args:
        times: Times from `time_turns`.
        peer: Name of the peer in `times`, or `None` if there is no peer.
        parts: Number of equal parts in a timed call, such as training steps.
    """
    ours = times["ours"]
    row = {"ours_ms": median_ms(ours, parts), "peer": peer}
    row |= dict.fromkeys(("peer_ms", "peer/ours", "lowest", "highest"))
    if peer:
        row["peer_ms"] = median_ms(times[peer], parts)
        row |= summarise_ratios(times[peer], ours)
    return row | {"rounds": len(ours)}


def write_results(name, rows):
    """Writes rows to `results/NAME.csv`, with versions and machine, and prints them."""
    versions = support.find_versions()
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["keras-hub"] = metadata.version("keras-hub")
    versions_text = " ".join(f"{key}={value}" for key, value in versions.items())
    environment = {"versions": versions_text, "machine": support.describe_machine()}
    path = os.path.join(RESULTS, f"{name}.csv")
    support.write_file(path, support.to_csv([{**row, **environment} for row in rows]))
    for values in (rows[0], *(row.values() for row in rows)):
        print(*values, sep="  ")
