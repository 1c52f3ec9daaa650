"""Measures the jobs of a study, several at a time, each on one thread of its own."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading

import numpy as np

from keras_resnet.support import InputError


@functools.lru_cache(maxsize=1)
def load_images(name, data_dir=None, count=0):
    """Loads a data set, or a part of it that is the same every time.

    Args:
        name: see `keras_resnet.data.load_dataset`.
        data_dir: where TFDS keeps its sets.
        count: training images, and a fifth as many held out; 0 is all.

    Returns:
        A `keras_resnet.data.Dataset`.

    Raises:
        InputError: there is no such data set, or it has fewer images.
    """
    from keras_resnet.data import load_dataset

    found = load_dataset(name, data_dir)
    if not count:
        return found
    if count > len(found.train) or count < 5:
        raise InputError(
            f"images must be from 5 to the {len(found.train)} training images of {name}. "
            f"Received: images={count}"
        )

    def part(split, number):
        places = np.random.default_rng(0).permutation(len(split))[:number]
        return split.take(np.sort(places))

    return dataclasses.replace(
        found, train=part(found.train, count), test=part(found.test, count // 5)
    )


# Copies of what each 3x3 layer gives that a training step holds at once; 2.3 were
# measured, with 44 layers and 128 images of CIFAR-10.
COPIES = 3.0


PROCESS = (
    1.2e9  # Bytes of a process that has imported TensorFlow and holds a small set.
)


def bytes_needed(depth, shape, batch_size):
    """Estimates the memory that training a CIFAR net takes, in bytes.

    Args:
        depth: weighted layers, 6n+2.
        shape: of an image, (height, width, channels).
        batch_size: images in a step.
    """
    height, width, _ = shape
    # Stages of 16, 32 and 64 channels at full, half and quarter resolution.
    activations = (depth - 2) / 3 * height * width * (16 + 8 + 4) * 4
    return PROCESS + COPIES * batch_size * activations


def bytes_available():
    """Memory that processes may still take, in bytes; `None` where it is not known."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            lines = dict(line.split(":") for line in file)
        found = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:  # In a container.
        with open("/sys/fs/cgroup/memory.max", encoding="utf-8") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.stat", encoding="utf-8") as file:
            used = dict(line.split() for line in file)
        # Files that are cached give way.
        found = min(found, limit - int(used["anon"]))
    except (OSError, ValueError, KeyError):
        pass
    return found


def worker_count(options, alone=False):
    """How many processes measure, from what is asked for and what memory allows.

    Raises:
        InputError: memory is not enough for one.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return 1 if options.workers is None else options.workers
    from keras_resnet.spec import RECIPES

    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    wanted = cores if options.workers is None else options.workers
    wanted = min(wanted, 1) if alone else wanted
    deepest = max(options.depths)
    recipe = RECIPES[options.recipe_name]
    needed = bytes_needed(deepest, options.load().shape, recipe.batch_size)
    available = bytes_available()
    if available is None or alone:
        return wanted
    if available < needed:
        raise InputError(
            f"Training {deepest} layers takes about {needed / 2**30:.1f} GiB of memory, and "
            f"{available / 2**30:.1f} are available. Accepted: smaller --depths or images. "
            f"Received: depths={','.join(map(str, options.depths))}"
        )
    return min(wanted, int(available // needed))


def measure_each(measure, options, found, workers):
    """Measures jobs, and yields each when it is done.

    Args:
        measure: a function of a module, see `keras_resnet.studies.study.Study`.
        options: `keras_resnet.studies.study.Options`.
        found: jobs by name.
        workers: processes; 0 is this very one.

    Yields:
        Pairs of a job's name and its rows.

    Raises:
        InputError: a job cannot be done, or a process died; the others are done first.
        FloatingPointError: a job's loss is no longer a number; likewise.
    """
    if not workers:
        for name, job in found.items():
            yield name, _measure(measure, options, job)
        return
    others = multiprocessing.active_children()
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin
    )
    failed = None
    try:
        futures = {
            executor.submit(_measure, measure, options, job): name
            for name, job in found.items()
        }
        for future in concurrent.futures.as_completed(futures):
            try:
                rows = future.result()
            except (InputError, FloatingPointError) as error:
                job = found[futures[future]]
                what = ", ".join(f"{name} {value}" for name, value in job.items())
                failed = failed or type(error)(f"{what}: {error}")
                continue
            yield futures[future], rows
    except concurrent.futures.process.BrokenProcessPool:
        raise InputError(
            "A process died, perhaps for want of memory. The same command goes on, with "
            "--workers=1 in a single one"
        ) from None
    finally:
        # Not `terminate`, which training takes for a wish to end between two steps.
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
        executor.shutdown(wait=False, cancel_futures=True)
    if failed:
        raise failed


def _begin():
    """Sets a process up: one thread; it ends with its parent, and without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from keras_resnet.support import import_keras

    import_keras()
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # It warns that each net is traced anew.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _measure(measure, options, job):
    import keras

    keras.backend.clear_session()
    return measure(options, job)
