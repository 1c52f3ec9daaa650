"""Progress bars."""

import contextlib
import sys


@contextlib.contextmanager
def progress_bar(what, steps, shown_from=2):
    """Shows a bar on standard error, where that is a terminal.

    Args:
        what: is done.
        steps: their number.
        shown_from: fewest steps for which there is a bar.

    Yields:
        A function to call after each step.
    """
    done, shown = 0, sys.stderr.isatty() and steps >= shown_from

    def advance():
        nonlocal done
        done += 1
        if shown:
            bar = "#" * (30 * done // steps)
            print(
                f"\r{what} {bar:<30} {done}/{steps}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    try:
        yield advance
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
