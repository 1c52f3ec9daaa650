"""What the benchmarks share: flags, taking turns, pairwise ratios, result files.

Another load on the machine slows both sides of a round alike, so only the ratio
within a round means much; the times themselves are of that machine at that hour.
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

from keras_resnet.support import machine, run_command, to_csv, versions, write_file

RESULTS = os.path.join(os.path.dirname(__file__), "results")


def run(main, required=(), **options):
    """Runs a benchmark as a program.

    Args:
        main: Function of the flags' values.
        required: Names of the flags that must be given.
        **options: Default and description of each flag.
    """
    for name, (default, description) in options.items():
        if isinstance(default, int):
            flags.DEFINE_integer(name, default, description, min(default, 1))
        else:
            flags.DEFINE_string(name, default, description, required=name in required)
    run_command(lambda argv: main(*(flags.FLAGS[name].value for name in options)))


def call_in_turn(sides, rounds):
    """Calls functions by name in turn, A B A B and so on; returns each one's answers."""
    answers = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            answers[name].append(side())
    return answers


def take_turns(sides, rounds, between=lambda: None):
    """Times each side once in every round.

    Args:
        sides: Functions without arguments, by name. Each is called once more at the
            start, for tracing and caches.
        rounds: Number of times, in seconds, that are returned of each.
        between: Function to call before each side, untimed.
    """

    def timed(side):
        between()
        begin = time.perf_counter()
        side()
        return time.perf_counter() - begin

    sides = {name: functools.partial(timed, side) for name, side in sides.items()}
    return {name: t[1:] for name, t in call_in_turn(sides, rounds + 1).items()}


def ask_in_turn(sides, rounds, **options):
    """Runs code in other Pythons in turn.

    Args:
        sides: Python and code, by name. The last line that it prints is a JSON list.
        rounds: Number of times that each is run.
        **options: Arguments of `subprocess.run`.

    Returns:
        A list for each side: of each entry, the values in all rounds.
    """
    options |= {"capture_output": True, "text": True}

    def ask(python, code):
        answer = subprocess.run([python, "-c", code], check=True, **options)
        return json.loads(answer.stdout.splitlines()[-1])

    calls = {name: functools.partial(ask, *side) for name, side in sides.items()}
    answers = call_in_turn(calls, rounds)
    return {name: list(zip(*rows, strict=True)) for name, rows in answers.items()}


def alone(make, *args):
    """Gives a side a process of its own, which waits while another's turn lasts.

    What one side does to its process, such as setting TensorFlow's or the memory
    allocator's options, then leaves the others alone.

    There, `make(*args)`, all pickled, returns a function without arguments. Returned here
    is a function that runs that one and waits for its end; `EOFError` if it fails.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, make, args), daemon=True).start()
    there.close()

    def side():
        here.send(None)
        here.recv()

    return side


def _serve(pipe, make, args):
    side = make(*args)
    # Until the pipe's other end closes.
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            side()
            pipe.send(None)


def milliseconds(times, parts=1):
    """Returns the median of times in seconds, for one of `parts` equal parts."""
    return round(1000 * statistics.median(times) / parts, 1)


def ratios(above, below, column="peer/ours"):
    """Returns columns: median, lowest and highest of the ratios within each round."""
    within = [a / b for a, b in zip(above, below, strict=True)]
    columns = {column: statistics.median, "lowest": min, "highest": max}
    return {name: round(function(within), 3) for name, function in columns.items()}


def compare(times, peer, parts=1):
    """Returns the columns of a comparison of "ours" with one peer.

    Args:
        times: What `take_turns` returned.
        peer: Name of the peer in `times`; `None` if ours has none.
        parts: Number of equal parts, such as steps, in what was timed.
    """
    ours = times["ours"]
    row = {"ours_ms": milliseconds(ours, parts), "peer": peer}
    if peer:
        row |= {
            "peer_ms": milliseconds(times[peer], parts),
            **ratios(times[peer], ours),
        }
    else:
        row |= dict.fromkeys(("peer_ms", "peer/ours", "lowest", "highest"))
    return row | {"rounds": len(ours)}


def write_results(name, rows):
    """Writes `results/NAME.csv`, rows with versions and machine, and prints them."""
    installed = versions()
    with contextlib.suppress(metadata.PackageNotFoundError):
        installed["keras-hub"] = metadata.version("keras-hub")
    words = " ".join(f"{key}={value}" for key, value in installed.items())
    about = {"versions": words, "machine": machine()}
    path = os.path.join(RESULTS, f"{name}.csv")
    write_file(path, to_csv([{**row, **about} for row in rows]))
    for values in (rows[0], *(row.values() for row in rows)):
        print(*values, sep="  ")
