"""Code that all benchmarks share: flags, turns, ratios and result files.

The sides of a benchmark are measured in turn, in rounds. Other load on the machine
slows both sides of a round, so ratios within a round are more reliable than times.
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

from keras_resnet.support import (
    describe_machine,
    package_versions,
    run_command,
    to_csv,
    write_file,
)

RESULTS = os.path.join(os.path.dirname(__file__), "results")


def run(main, required=(), **options):
    """Runs a benchmark with options from the command line.

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
    run_command(lambda argv: main(*(flags.FLAGS[name].value for name in options)))


def call_in_turn(sides, rounds):
    """Calls functions in turn (A B A B ...) and returns lists of results by name."""
    results = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            results[name].append(side())
    return results


def time_turns(sides, rounds, between=lambda: None):
    """Returns the times in seconds of each side, measured once in every round.

    Args:
        sides: Functions without arguments, by name. An additional first round warms up
            traces and caches and is not returned.
        rounds: Number of rounds.
        between: Function to call before each side. Its time does not count.
    """

    def timed(side):
        between()
        begin = time.perf_counter()
        side()
        return time.perf_counter() - begin

    sides = {name: functools.partial(timed, side) for name, side in sides.items()}
    return {name: t[1:] for name, t in call_in_turn(sides, rounds + 1).items()}


def run_scripts(sides, rounds, **options):
    """Runs scripts in other Python processes in turn.

    Args:
        sides: Python interpreter and script, by name. The last line printed by a
            script must be a JSON list.
        rounds: Number of runs of each script.
        **options: Arguments of `subprocess.run`.

    Returns:
        Columns of each side: for each entry of its JSON list, the values of all rounds.
    """
    options |= {"capture_output": True, "text": True}

    def run_script(python, code):
        result = subprocess.run([python, "-c", code], check=True, **options)
        return json.loads(result.stdout.splitlines()[-1])

    calls = {name: functools.partial(run_script, *side) for name, side in sides.items()}
    results = call_in_turn(calls, rounds)
    return {name: list(zip(*rows, strict=True)) for name, rows in results.items()}


def isolate(make, *args):
    """Starts a side in a separate process, which waits until its turn.

    Settings of TensorFlow or the memory allocator then do not affect other sides. The
    process calls `make(*args)`, which must be picklable, to get a function without
    arguments. The returned `side()` calls that function in the process and waits for its
    end. It raises `EOFError` if the function fails.
    """
    context = multiprocessing.get_context("spawn")
    pipe, process_pipe = context.Pipe()
    context.Process(target=_serve, args=(process_pipe, make, args), daemon=True).start()
    process_pipe.close()

    def side():
        pipe.send(None)
        pipe.recv()

    return side


def _serve(pipe, make, args):
    side = make(*args)
    # The loop ends when the other end of the pipe is closed.
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            side()
            pipe.send(None)


def median_ms(times, parts=1):
    """Returns the median in ms of times in seconds, divided by a number of parts."""
    return round(1000 * statistics.median(times) / parts, 1)


def ratios(above, below, column="peer/ours"):
    """Returns columns with median, lowest and highest of the ratios of all rounds."""
    round_ratios = [a / b for a, b in zip(above, below, strict=True)]
    columns = {column: statistics.median, "lowest": min, "highest": max}
    return {name: round(reduce(round_ratios), 3) for name, reduce in columns.items()}


def compare(times, peer, parts=1):
    """Returns the columns of a comparison of "ours" with one peer.

    Args:
        times: Times from `time_turns`.
        peer: Name of the peer in `times`, or `None` if there is no peer.
        parts: Number of equal parts in a timed call, such as training steps.
    """
    ours = times["ours"]
    row = {"ours_ms": median_ms(ours, parts), "peer": peer}
    if peer:
        row |= {"peer_ms": median_ms(times[peer], parts), **ratios(times[peer], ours)}
    else:
        row |= dict.fromkeys(("peer_ms", "peer/ours", "lowest", "highest"))
    return row | {"rounds": len(ours)}


def write_results(name, rows):
    """Writes rows with versions and machine to `results/NAME.csv` and prints them."""
    installed = package_versions()
    with contextlib.suppress(metadata.PackageNotFoundError):
        installed["keras-hub"] = metadata.version("keras-hub")
    text = " ".join(f"{key}={value}" for key, value in installed.items())
    about = {"versions": text, "machine": describe_machine()}
    path = os.path.join(RESULTS, f"{name}.csv")
    write_file(path, to_csv([{**row, **about} for row in rows]))
    for values in (rows[0], *(row.values() for row in rows)):
        print(*values, sep="  ")
