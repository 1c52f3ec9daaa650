"""How long one image takes."""

import statistics
import time


def measure(classifiers, image, rounds=30, warmup=5):
    """Times classifiers on one image, in turn, so that all meet the same noise.

    Args:
        classifiers: a dict of functions of uint8 images (1, height, width,
            channels).
        image: what to call them with.
        rounds: number of times that each is timed.
        warmup: number of calls beforehand that are not.

    Returns:
        A dict of the medians, in milliseconds.
    """
    times = {name: [] for name in classifiers}
    for turn in range(warmup + rounds):
        for name, classify in classifiers.items():
            start = time.perf_counter()
            classify(image)
            if turn >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}
