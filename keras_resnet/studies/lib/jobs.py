"""Dataset of a study, and single-threaded worker processes that measure jobs."""

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
def load_subset(name: str, data_dir: str | None = None, count: int = 0) -> "Dataset":
    """Loads a dataset or, if `count` is positive, a fixed random subset of it.

    The subset has `count` training images and a fifth as many test images.

    Raises:
        InputError: If the dataset does not exist, or `count` is below 5 or too large.
    """
    from keras_resnet.data import load_dataset

    dataset = load_dataset(name, data_dir)
    if not count:
        return dataset
    if count > len(dataset.train) or count < 5:
        raise InputError(
            f"The number of images must be from 5 to {len(dataset.train)}, the number of "
            f"training images of {name}. Received: images={count}"
        )

    def sample(split: "Split", size: int) -> "Split":
        indices = np.random.default_rng(0).permutation(len(split))[:size]
        return split.take(np.sort(indices))

    train, test = sample(dataset.train, count), sample(dataset.test, count // 5)
    return dataclasses.replace(dataset, train=train, test=test)


def count_workers(requested_count: int | None, sequential: bool = False) -> int:
    """Returns the number of worker processes; 0 if this process measures the jobs.

    `requested_count` is the value of `--workers`. `None` stands for one worker if there
    is a GPU, otherwise for one worker per CPU. `sequential` allows at most one worker.
    """
    if requested_count is None:
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            requested_count = 1
        elif hasattr(os, "sched_getaffinity"):
            requested_count = len(os.sched_getaffinity(0))
        else:
            requested_count = os.cpu_count() or 1
    return min(requested_count, 1) if sequential else requested_count


def describe_job(job: Row) -> str:
    """Returns a job as text, such as `kind res, depth 8, seed 0`."""
    return ", ".join(f"{name} {value}" for name, value in job.items())


def measure_jobs(
    measure: Measure, jobs: Mapping[str, Row], num_workers: int
) -> Iterator[tuple[str, Rows]]:
    """Measures jobs and yields the name and the rows of each job when it is finished.

    If `measure` raises an error, other jobs are finished before the error is raised.

    Args:
        measure: Function that returns the rows of a job. It must be picklable.
        jobs: Jobs by name.
        num_workers: Number of worker processes; 0 to measure in this process.

    Raises:
        InputError: If a worker process dies, or `measure` raises an InputError.
        FloatingPointError: If the loss of a job diverges.
    """
    if not num_workers:
        for name, job in jobs.items():
            yield name, _measure(measure, job)
        return
    earlier_children = multiprocessing.active_children()
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), _start_worker
    )
    failure: InputError | FloatingPointError | None = None
    try:
        futures = {
            executor.submit(_measure, measure, job): name for name, job in jobs.items()
        }
        for future in concurrent.futures.as_completed(futures):
            name = futures[future]
            try:
                rows = future.result()
            except (InputError, FloatingPointError) as error:
                failure = failure or type(error)(f"{describe_job(jobs[name])}: {error}")
                continue
            yield name, rows
    except concurrent.futures.BrokenExecutor:
        raise InputError(
            "A worker process died, perhaps because memory ran out. Run the command again "
            "with --workers=1 to resume with a single process"
        ) from None
    finally:
        # Workers are killed, because training reacts to SIGTERM only after a while.
        for child in multiprocessing.active_children():
            if child not in earlier_children:
                child.kill()
        executor.shutdown(wait=False, cancel_futures=True)
    if failure:
        raise failure


def _start_worker() -> None:
    """Limits a worker to one thread and makes it exit when the parent process exits."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    from keras_resnet.support import import_keras

    import_keras()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # Hides TensorFlow's warnings about retracing.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _exit_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _measure(measure: Measure, job: Row) -> Rows:
    import keras

    keras.backend.clear_session()
    return measure(job)
