"""Runs that are killed and go on with another strategy or number of replicas."""

import itertools
import json
import random

import numpy as np
import pytest
from children import KILLED, Child
from test_multi_worker import assert_success, join_weights, start_workers

# Each image is in a batch twice, images are mixed in pairs, and weights are averaged.
OPTIONS = {
    "batch_size": 16,
    "epochs": 7,
    "repeats": 2,
    "mixup": 0.2,
    "ema": 0.9,
    "checkpoint_every": 1,
}
NUM_STEPS = 28  # The 59 images are four batches.
DEVICES = {
    "one_device": {"strategy": "one_device"},
    "mirrored": {"strategy": "mirrored", "virtual_devices": 2},
    "multi_worker": {},
}


def run(folder, strategy, num_steps=None):
    """Trains in float64 and returns the output, without an end if `num_steps` is given.

    All processes are killed after `num_steps` steps. The last checkpoint is of the step
    before.
    """
    faults = [("kill_after_step", num_steps)] if num_steps else []
    if strategy == "multi_worker":
        children = start_workers(folder, (faults, faults), **OPTIONS)
    else:
        arguments = map(json.dumps, ({**OPTIONS, **DEVICES[strategy]}, {}))
        children = [
            Child(
                "test_multi_worker",
                folder,
                *arguments,
                cwd=folder.parent,
                faults=faults,
            )
        ]
    results = [child.wait(200) for child in children]
    if num_steps:
        assert results[0].returncode == KILLED, results[0].stderr
    else:
        assert_success(results)
    return results[0].stdout


@pytest.fixture(scope="module")
def unchanged_run(tmp_path_factory):
    """Folder of a run that used one device to its end."""
    folder = tmp_path_factory.mktemp("unchanged") / "run"
    run(folder, "one_device")
    return folder


def assert_same_results(folder, expected_folder):
    """Asserts that two runs agree within 1e-9; returns the largest difference."""
    weights, expected_weights = (
        join_weights(np.load(f"{path}-0.npz")) for path in (folder, expected_folder)
    )
    difference = np.abs(weights - expected_weights).max()
    assert difference < 1e-9
    rows, expected_rows = (
        np.genfromtxt(path / "metrics.csv", delimiter=",", skip_header=1)
        for path in (folder, expected_folder)
    )
    np.testing.assert_allclose(rows, expected_rows, rtol=1e-6)
    return difference


def read_devices(folder):
    return json.loads((folder / "run.json").read_text())["devices"]


@pytest.mark.slow
def test_a_run_goes_on_with_two_replicas_with_two_workers_and_back(
    unchanged_run, tmp_path
):
    folder = tmp_path / "run"
    message = "The run has changed its devices. Its weights equal those of a run on"
    assert message not in run(folder, "one_device", 6)
    output = run(folder, "mirrored", 5)
    assert message in output and "Resuming after step 5 of 28." in output
    output = run(folder, "multi_worker", 4)
    assert message in output and "Resuming after step 9 of 28." in output
    output = run(folder, "one_device")
    assert message in output and "Resuming after step 12 of 28." in output
    assert read_devices(unchanged_run) == []
    assert read_devices(folder) == [
        [0, "one_device", 1],
        [5, "mirrored", 2],
        [9, "multi_worker", 2],
        [12, "one_device", 1],
    ]
    assert_same_results(folder, unchanged_run)


@pytest.mark.full
def test_ten_random_changes_of_devices_change_only_the_rounding(
    unchanged_run, tmp_path
):
    folder, generator, strategies = tmp_path / "run", random.Random(18), [None]
    steps = [0, *sorted(generator.sample(range(1, NUM_STEPS), 10)), NUM_STEPS]
    for start, end in itertools.pairwise(steps):
        strategies.append(generator.choice([s for s in DEVICES if s != strategies[-1]]))
        run(folder, strategies[-1], end - start + 1 if end < NUM_STEPS else None)
    expected = [
        [step, strategy, 1 if strategy == "one_device" else 2]
        for step, strategy in zip(steps[:-1], strategies[1:], strict=True)
    ]
    assert read_devices(folder) == expected
    print("Largest difference:", assert_same_results(folder, unchanged_run), expected)
