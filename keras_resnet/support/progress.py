"""Progress bars."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(
    description: str, steps: int, shown_from: int = 2, unit: str = ""
) -> Iterator[Callable[..., None]]:
    """Shows a bar on standard error, if that is a terminal.

    Args:
        description: What is done, such as `"evaluating"`.
        steps: Number of steps.
        shown_from: Smallest number of steps for which a bar is shown.
        unit: `"bytes"` for a download, whose steps are shown as a size with speed.

    Yields:
        A function to call after each step, or with a number of steps.
    """
    if not sys.stderr.isatty() or steps < shown_from:
        yield lambda count=1: None
        return
    from rich import progress
    from rich.console import Console

    done: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
    if unit == "bytes":
        done = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *done,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # Or lines would miss their file.
    )
    with bar:
        task = bar.add_task(description, total=steps)
        yield lambda count=1: bar.advance(task, count)
