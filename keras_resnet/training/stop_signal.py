"""SIGTERM, by which machines are taken away, as a flag that the loop looks at."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Stopped(Exception):
    """The run was told to stop, between two steps."""


class StopSignal:
    """A flag that SIGTERM sets.

    Attributes:
        is_set: Whether this process was told to stop.
    """

    def __init__(self) -> None:
        self.is_set = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handles SIGTERM within; only in the main thread, where Python allows it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            self.is_set = True

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
