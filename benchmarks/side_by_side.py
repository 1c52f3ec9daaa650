"""What the benchmarks share: taking turns, pairwise ratios, result files.

Another load on the machine slows both sides of a round alike, so only the ratio
within a round means much; the times themselves are of that machine at that hour.
"""

import contextlib
import csv
import io
import multiprocessing
import os
import statistics
import time
from importlib import metadata

RESULTS = os.path.join(os.path.dirname(__file__), "results")


def take_turns(sides, rounds, between=lambda: None):
    """Times each side once in every round: A B A B and so on.

    Args:
        sides: dict from a name to a function without arguments. It is called
            once more at the start, for tracing and caches.
        rounds: how often each is timed.
        between: called before each side, untimed.

    Returns:
        A dict from each name to its times in seconds, one for each round.
    """
    times = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            between()
            begin = time.perf_counter()
            side()
            if number:
                times[name].append(time.perf_counter() - begin)
    return times


def alone(make, *args):
    """Gives a side a process of its own, which waits while another's turn lasts.

    What one side does to its process, such as setting TensorFlow's or the memory
    allocator's options, then leaves the others alone.

    Args:
        make: called there as `make(*args)`; returns a function without arguments.
        *args: to be pickled, as `make` is.

    Returns:
        A function that runs that one and waits for its end; `EOFError` if it
        fails.
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


def ratios(above, below):
    """Returns median, lowest and highest of the ratios within each round."""
    found = [a / b for a, b in zip(above, below, strict=True)]
    return [round(f(found), 3) for f in (statistics.median, min, max)]


def compare(times, peer, parts=1):
    """Returns the columns of a comparison of "ours" with one peer.

    Args:
        times: from `take_turns`.
        peer: name of the peer in `times`; `None` if ours has none.
        parts: number of equal parts, such as steps, in what was timed.
    """
    ours, theirs = times["ours"], times.get(peer)
    median, lowest, highest = ratios(theirs, ours) if theirs else [None] * 3
    return {
        "ours_ms": milliseconds(ours, parts),
        "peer": peer,
        "peer_ms": milliseconds(theirs, parts) if theirs else None,
        "peer/ours": median,
        "lowest": lowest,
        "highest": highest,
        "rounds": len(ours),
    }


def write_results(name, rows):
    """Writes `results/NAME.csv` with versions and machine, and prints it.

    Args:
        name: of the benchmark.
        rows: dicts with the same columns.
    """
    from keras_resnet.support.environment import machine, versions
    from keras_resnet.support.files import write_file

    found = versions()
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["keras-hub"] = metadata.version("keras-hub")
    about = {
        "versions": " ".join(f"{key}={value}" for key, value in found.items()),
        "machine": machine(),
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0], *about], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **about} for row in rows)
    os.makedirs(RESULTS, exist_ok=True)
    write_file(os.path.join(RESULTS, f"{name}.csv"), text.getvalue())
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(str(value) for value in row.values()))
