"""Measures the jobs of a study, several at a time, each on one thread of its own."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.studies.lib.tables import Row, Rows
from keras_resnet.support import InputError

if TYPE_CHECKING:
    from keras_resnet.data import Dataset, Split

Measure = Callable[[Row], Rows]


@functools.lru_cache(maxsize=1)
def load_images(name: str, data_dir: str | None = None, count: int = 0) -> "Dataset":
    """Loads a data set, or a part of it that is the same every time.

    The part has `count` training images and a fifth as many held-out ones.

    Raises:
        InputError: There is no such data set, or it has fewer images.
    """
    from keras_resnet.data import load_dataset

    images = load_dataset(name, data_dir)
    if not count:
        return images
    if count > len(images.train) or count < 5:
        raise InputError(
            f"images must be from 5 to the {len(images.train)} training images of {name}. "
            f"Received: images={count}"
        )

    def part(split: "Split", number: int) -> "Split":
        places = np.random.default_rng(0).permutation(len(split))[:number]
        return split.take(np.sort(places))

    train, test = part(images.train, count), part(images.test, count // 5)
    return dataclasses.replace(images, train=train, test=test)


def worker_count(wanted: int | None, alone: bool = False) -> int:
    """Returns the number of processes that measure; 0 is this very process.

    The user's number is `wanted`; `None` is one for each CPU, or a single one with a
    GPU. With `alone`, jobs are measured one after the other.
    """
    if wanted is None:
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            wanted = 1
        elif hasattr(os, "sched_getaffinity"):
            wanted = len(os.sched_getaffinity(0))
        else:
            wanted = os.cpu_count() or 1
    return min(wanted, 1) if alone else wanted


def describe(job: Row) -> str:
    """Returns a job in words, such as `kind res, depth 8, seed 0`."""
    return ", ".join(f"{name} {value}" for name, value in job.items())


def measure_each(
    measure: Measure, jobs: Mapping[str, Row], workers: int
) -> Iterator[tuple[str, Rows]]:
    """Measures jobs, and yields the name and the rows of each when it is done.

    Args:
        measure: Function of a job that can be pickled.
        jobs: Jobs by name.
        workers: Number of processes; 0 is this very process.

    Raises:
        InputError: A job cannot be done, or a process died; the others are done first.
        FloatingPointError: A job's loss is no longer a number; likewise.
    """
    if not workers:
        for name, job in jobs.items():
            yield name, _measure(measure, job)
        return
    others = multiprocessing.active_children()
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin
    )
    failed: InputError | FloatingPointError | None = None
    try:
        futures = {
            executor.submit(_measure, measure, job): name for name, job in jobs.items()
        }
        for future in concurrent.futures.as_completed(futures):
            name = futures[future]
            try:
                rows = future.result()
            except (InputError, FloatingPointError) as error:
                failed = failed or type(error)(f"{describe(jobs[name])}: {error}")
                continue
            yield name, rows
    except concurrent.futures.BrokenExecutor:
        raise InputError(
            "A process died, perhaps for want of memory. The same command goes on, with "
            "--workers=1 in a single one"
        ) from None
    finally:
        # Not `terminate`: training takes SIGTERM for a wish to end between two steps.
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        executor.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise failed


def _begin() -> None:
    """Sets a process up: one thread; it ends with its parent, and without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from keras_resnet.support import import_keras

    import_keras()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # It warns that each net is traced anew.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _measure(measure: Measure, job: Row) -> Rows:
    import keras

    keras.backend.clear_session()
    return measure(job)
