"""Functions that benchmarks share: flags, alternating measurements, result files.

A benchmark compares implementations, such as this package ("ours") and a peer. Every
round measures each implementation once. Other load on the machine slows all of them, so
ratios of times in the same round are more reliable than the times.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
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


def call_in_turn(functions, num_rounds):
    """Calls functions in turn (A B A B ...) and returns lists of results by name."""
    results = {name: [] for name in functions}
    for number in range(1, num_rounds + 1):
        for name, function in functions.items():
            print(f"round {number}/{num_rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(function())
    return results


def time_turns(functions, num_rounds, between=lambda: None):
    """Returns the times of each function in seconds, one for each round, by name.

    Args:
        functions: Functions without arguments, by name.
        num_rounds: Number of timed rounds. An untimed round before them warms up traces
            and caches.
        between: Function to call before each function, outside the measured time.
    """

    def time_call(function):
        between()
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    calls = {k: functools.partial(time_call, f) for k, f in functions.items()}
    return {k: v[1:] for k, v in call_in_turn(calls, num_rounds + 1).items()}


def run_scripts(scripts, num_rounds, **options):
    """Runs scripts in other Python processes in turn.

    Args:
        scripts: Python interpreter and script, by name. The last line printed by a
            script must be a JSON list.
        num_rounds: Number of runs of each script.
        **options: Arguments of `subprocess.run`.

    Returns:
        A dict from name to columns. Column i has entry i of the printed lists.
    """
    options |= {"capture_output": True, "text": True}

    def run_script(python, code):
        process = subprocess.run([python, "-c", code], check=True, **options)
        return json.loads(process.stdout.splitlines()[-1])

    calls = {k: functools.partial(run_script, *v) for k, v in scripts.items()}
    results = call_in_turn(calls, num_rounds)
    return {name: list(zip(*rows, strict=True)) for name, rows in results.items()}


def isolate(make_function, *args):
    """Starts a process and returns a function that runs a benchmark in the process.

    In a separate process, settings of TensorFlow or the memory allocator do not affect
    other benchmarks. The process calls `make_function(*args)`, which must be picklable,
    to get the benchmark, a function without arguments. The returned `run_function()`
    runs the benchmark to its end, or raises `EOFError` if the benchmark fails.
    """
    context = multiprocessing.get_context("spawn")
    pipe, process_pipe = context.Pipe()
    context.Process(
        target=_serve, args=(process_pipe, make_function, args), daemon=True
    ).start()
    process_pipe.close()

    def run_function():
        pipe.send(None)
        pipe.recv()

    return run_function


def _serve(pipe, make_function, args):
    function = make_function(*args)
    # `recv` raises `EOFError` when the parent process ends.
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            function()
            pipe.send(None)


def median_ms(times, parts=1):
    """Returns the median of `times` (seconds) divided by `parts`, in milliseconds."""
    return round(1000 * statistics.median(times) / parts, 1)


def summarise_ratios(numerators, denominators, median_name="peer/ours"):
    """Returns the median, lowest and highest of the rounds' ratios, by column name."""
    round_ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    columns = {median_name: statistics.median, "lowest": min, "highest": max}
    return {k: round(reduce(round_ratios), 3) for k, reduce in columns.items()}


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
