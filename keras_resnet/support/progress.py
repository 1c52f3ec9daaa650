"""Progress bars of long operations."""

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(
    description: str, steps: int, min_steps: int = 2, unit: str = ""
) -> Iterator[Callable[..., None]]:
    """Shows a progress bar on standard error if standard error is a terminal.

    Args:
        description: Name of the activity, such as `"evaluating"`.
        min_steps: Smallest total number of steps for which a bar is shown.
        unit: `"bytes"` if the steps are bytes. The bar then shows sizes and a speed.

    Yields:
        Function to call after each step. Its argument is the number of steps since the
        last call, 1 by default.
    """
    if not sys.stderr.isatty() or steps < min_steps:
        yield lambda count=1: None
        return
    from rich import progress
    from rich.console import Console

    columns: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
    if unit == "bytes":
        columns = (progress.DownloadColumn(), progress.TransferSpeedColumn())
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *columns,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # Output to a file must not go to stderr.
    )
    with bar:
        task = bar.add_task(description, total=steps)
        yield lambda count=1: bar.advance(task, count)
