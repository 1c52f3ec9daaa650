"""Recovery of training runs from SIGTERM, SIGKILL, NaN and a full disk.

Every run executes the command `train` in a separate process. A run has 18 steps in 3
epochs and writes a checkpoint every 4 steps. After the recovery, the files of the run
are compared with the files of an undisturbed run.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf
from children import (
    Child,
    assert_same_results,
    find_checkpoint_steps,
    list_complete_checkpoints,
    run_child,
)
from conftest import assert_one_line

FLAGS = (
    "--model=cifar_resnet8", "--strategy=one_device", "--epochs=3",
    "--batch_size=240", "--set", "checkpoint_every=4", "--set", "ema=0.9",
)  # fmt: skip
PREDICT_FUNCTION = ("keras_resnet.evaluation.evaluator", "Evaluator.predict")
MANAGER_MODULE = "tensorflow.python.checkpoint.checkpoint_management"
KILLED = -signal.SIGKILL


def start_training(directory, *faults, flags=()):
    return Child(
        "keras_resnet.train", *FLAGS, *flags, "--model_dir=run", cwd=directory,
        faults=faults,
    )  # fmt: skip


def train(directory, *faults, flags=()):
    return start_training(directory, *faults, flags=flags).wait()


def find_resumed_step(result):
    """Returns the step after which a run resumed, or 0 if it did not resume."""
    match = re.search(r"Resuming after step (\d+) of 18\.", result.stdout)
    return int(match[1]) if match else 0


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory):
    """Folder of a run that ended without an interruption."""
    directory = tmp_path_factory.mktemp("undisturbed")
    result = train(directory)
    assert (result.returncode, result.stderr) == (0, "")
    return directory / "run"


def assert_finite(path):
    """Checks that a checkpoint can be read and contains only finite numbers."""
    reader = tf.train.load_checkpoint(str(path))
    arrays = [reader.get_tensor(name) for name in reader.get_variable_to_shape_map()]
    float_arrays = [
        array
        for array in arrays
        if np.issubdtype(getattr(array, "dtype", "O"), np.floating)
    ]
    assert len(float_arrays) > 50
    assert all(np.isfinite(array).all() for array in float_arrays)


# Faults that kill the process of a run, in the order in which a run reaches them.


def block_index(folder, step):
    """Creates a folder named like the index file, so that writing the file fails."""
    (folder / "checkpoints" / f"step-{step}.index").mkdir(parents=True)


def unblock_index(folder, step):
    (folder / "checkpoints" / f"step-{step}.index").rmdir()


KILL_AFTER_STEP_1 = [("kill_after_step", 1)]
KILL_IN_BEST_KERAS = [
    ("kill_in_archive", "*/.best.keras.*.part.keras", "model.weights.h5")
]
KILL_BEFORE_INDEX = [("kill_instead_of_failing",)]
KILL_BEFORE_LISTING = [
    ("kill_before", MANAGER_MODULE, "update_checkpoint_state_internal")
]
KILL_BEFORE_DELETION = [("kill_before", MANAGER_MODULE, "_delete_file_if_exists")]
KILL_DURING_DELETION = [("kill_before", MANAGER_MODULE, "_delete_file_if_exists", 2)]
KILL_BEFORE_RENAME = [("kill_on", "os.rename", "*/.final.keras.*.part.keras")]
KILL_BEFORE_REMOVAL = [("kill_on", "shutil.rmtree", "*/checkpoints")]


def test_a_run_killed_eight_times_equals_an_undisturbed_one(undisturbed_run, tmp_path):
    """A run is killed eight times and resumes each time from the newest checkpoint."""
    run = tmp_path / "run"

    result = train(tmp_path, *KILL_AFTER_STEP_1)
    assert result.returncode == KILLED, result.stderr
    assert find_checkpoint_steps(run) == {"data": [], "index": []}

    result = train(tmp_path, *KILL_IN_BEST_KERAS)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 0), result.stderr
    (partial_file,) = run.glob(".best.keras.*.part.keras")
    assert partial_file.stat().st_size > 10_000
    assert not (run / "best.keras").exists()
    assert find_checkpoint_steps(run) == {"data": [4], "index": [4]}

    block_index(run, 8)
    result = train(tmp_path, *KILL_BEFORE_INDEX)
    unblock_index(run, 8)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 4), result.stderr
    assert find_checkpoint_steps(run) == {"data": [4, 8], "index": [4]}

    result = train(tmp_path, *KILL_BEFORE_LISTING)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 4), result.stderr
    assert find_checkpoint_steps(run) == {"data": [4, 8], "index": [4, 8]}
    assert list_complete_checkpoints(run) == [4]

    result = train(tmp_path, *KILL_BEFORE_DELETION)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 4), result.stderr
    assert find_checkpoint_steps(run) == {"data": [4, 8, 12], "index": [4, 8, 12]}
    assert list_complete_checkpoints(run) == [4, 8, 12]

    result = train(tmp_path, *KILL_DURING_DELETION)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 12), result.stderr
    steps = find_checkpoint_steps(run)
    assert steps["index"][-2:] == [12, 16] and len(steps["data"]) > len(steps["index"])

    result = train(tmp_path, *KILL_BEFORE_RENAME)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 16), result.stderr
    assert list(run.glob(".final.keras.*.part.keras"))
    assert not (run / "final.keras").exists()

    result = train(tmp_path, *KILL_BEFORE_REMOVAL)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 16), result.stderr
    assert (run / "final.keras").exists() and find_checkpoint_steps(run)["index"]

    result = train(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "has ended; nothing to do" in result.stdout
    assert_same_results(run, undisturbed_run)


@pytest.mark.full
@pytest.mark.parametrize(
    ("faults", "blocked_step"),
    [
        (KILL_IN_BEST_KERAS, None),
        (KILL_BEFORE_INDEX, 4),  # The first checkpoint is written after step 4.
        (KILL_BEFORE_INDEX, 16),
        (KILL_BEFORE_LISTING, None),
        (KILL_DURING_DELETION, None),
        ([("kill_on", "os.rename", "*/.metrics.csv.*.part", 2)], None),
        ([("kill_on", "open", "*/.best.keras.*.part.keras", 2)], None),
        ([("kill_on", "os.rename", "*/.curves.png.*.part")], None),
        (
            [("kill_in_archive", "*/.final.keras.*.part.keras", "model.weights.h5")],
            None,
        ),
        (
            [("kill_on", "os.remove", "*checkpoint")],
            None,
        ),  # Kill during the deletion of the folder `checkpoints`.
    ],
)
def test_a_run_killed_once_equals_an_undisturbed_one(
    faults, blocked_step, undisturbed_run, tmp_path
):
    if blocked_step:
        block_index(tmp_path / "run", blocked_step)
        (tmp_path / "run" / "run.json").write_bytes(
            (undisturbed_run / "run.json").read_bytes()
        )
    result = train(tmp_path, *faults)
    assert result.returncode == KILLED, (result.stdout, result.stderr)
    if blocked_step:
        unblock_index(tmp_path / "run", blocked_step)
    result = train(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert_same_results(tmp_path / "run", undisturbed_run)


@pytest.mark.full
def test_a_run_killed_at_random_moments_equals_an_undisturbed_one(
    undisturbed_run, tmp_path
):
    """20 processes are killed, not counting processes that end before the kill."""
    seed = random.randrange(2**32)
    print(f"Random seed of the kill times: {seed}")
    generator, num_kills, num_runs = random.Random(seed), 0, 0
    start_time = time.monotonic()
    train(tmp_path)
    duration = time.monotonic() - start_time
    while num_kills < 20:
        shutil.rmtree(tmp_path / "run")
        num_runs += 1
        for _ in range(5):
            process = start_training(tmp_path)
            delay = generator.uniform(0.1, 1.0) * duration
            deadline = time.monotonic() + delay
            while process.is_running and time.monotonic() < deadline:
                time.sleep(0.01)
            if not process.is_running:
                break
            os.kill(process.pid, signal.SIGKILL)
            num_kills += process.wait().returncode == KILLED
        result = train(tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert_same_results(tmp_path / "run", undisturbed_run)
    assert num_runs <= 20


def assert_stopped(result, step):
    assert result.returncode == 143, (result.stdout, result.stderr)
    assert result.stderr == (
        f"Stopped by SIGTERM after step {step} of 18. "
        "The same command resumes the run\n"
    )


def test_sigterm_stops_a_run_that_can_resume(undisturbed_run, tmp_path):
    """The first SIGTERM arrives during an epoch, the second during an evaluation."""
    run = tmp_path / "run"
    # Each step sleeps for half a second, so that the run cannot end before the signal.
    process = start_training(tmp_path, ("call_after_step", "each", "_sleep", 0.5))
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "checkpoint").exists():
        assert process.is_running and time.monotonic() < deadline
        time.sleep(0.02)
    signal_time = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    result = process.wait(30)
    assert time.monotonic() - signal_time < 20
    step = list_complete_checkpoints(run)[-1]
    assert 4 <= step <= 12
    assert_stopped(result, step)
    has_ended_epoch = step > 6
    assert (
        (run / "curves.png").exists()
        == (run / "metrics.csv").exists()
        == has_ended_epoch
    )

    evaluation_number = 1 if has_ended_epoch else 2
    result = train(
        tmp_path, ("call_before", *PREDICT_FUNCTION, "_terminate", evaluation_number)
    )
    assert_stopped(result, 12)
    assert find_resumed_step(result) == step
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    final_result = train(tmp_path)
    assert (
        final_result.returncode,
        final_result.stderr,
        find_resumed_step(final_result),
    ) == (0, "", 12)
    assert_same_results(run, undisturbed_run)


@pytest.mark.full
def test_sigterm_stops_a_run_after_its_first_or_last_step(undisturbed_run, tmp_path):
    """A run that stops after step 1 has no `curves.png`.

    The second process runs steps 2 to 18 and receives SIGTERM after step 18.
    """
    run = tmp_path / "run"
    result = train(tmp_path, ("call_after_step", 1, "_terminate"))
    assert_stopped(result, 1)
    assert sorted(os.listdir(run)) == ["augmented.png", "checkpoints", "run.json"]
    result = train(tmp_path, ("call_after_step", 17, "_terminate"))
    assert_stopped(result, 18)
    result = train(tmp_path)
    assert (result.returncode, find_resumed_step(result)) == (0, 18)
    assert_same_results(run, undisturbed_run)


@pytest.mark.parametrize("checkpoint_every", [1, 100])
def test_a_loss_of_nan_stops_the_run(checkpoint_every, tmp_path):
    """The message contains the step, the learning rate and the last good checkpoint."""
    flags = (
        "--learning_rate=1e30",
        "--set",
        "warmup=0.1",
        "--set",
        f"ema={checkpoint_every % 2 / 2}",
    )
    flags = [
        *flags,
        f"--model_dir={tmp_path}/run",
        "--set",
        f"checkpoint_every={checkpoint_every}",
    ]
    result = run_child("keras_resnet.train", *FLAGS[:4], *flags, cwd=tmp_path)
    assert_one_line(result, " step ", "e+2")
    step = int(re.search(r"(?:after|of) step (\d+)", result.stderr)[1])
    # The learning rate of step 1 is 0. After step 2 the weights are not finite, which
    # is detected after step 2 or from the loss of step 3.
    assert step in (2, 3)
    assert not (tmp_path / "run" / "final.keras").exists()
    if checkpoint_every == 100:
        assert "no checkpoint exists" in result.stderr
    else:
        message = (
            f"the last good checkpoint is {tmp_path}/run/checkpoints/step-{step - 1}"
        )
        assert message in result.stderr
        assert find_checkpoint_steps(tmp_path / "run")["index"] == list(range(1, step))
        for saved_step in range(1, step):
            assert_finite(f"{tmp_path}/run/checkpoints/step-{saved_step}")


def test_weights_that_overflow_are_not_saved(tmp_path):
    """A step has a finite loss, but its update makes the weights infinite.

    The first run would next save a regular checkpoint. The second run would save a
    checkpoint because of SIGTERM. Neither run saves the infinite weights.
    """
    run = tmp_path / "run"
    result = train(tmp_path, ("call_after_step", 8, "_overflow"))
    assert_one_line(result, "after step 8", f"{run.name}/checkpoints/step-4")
    assert find_checkpoint_steps(run)["index"] == [4]
    result = train(
        tmp_path,
        ("call_after_step", 3, "_overflow"),
        ("call_after_step", 3, "_terminate"),
    )
    assert_one_line(result, "after step 7", "step-4")
    assert list_complete_checkpoints(run) == [4]
    assert_finite(run / "checkpoints" / "step-4")


def assert_disk_error(result, path):
    assert_one_line(result, path)
    assert re.search("File too large|No space left on device", result.stderr)


def test_a_limited_file_size_loses_no_work(undisturbed_run, tmp_path):
    """A limit on the file size simulates a full disk, three times in one run."""
    run = tmp_path / "run"
    result = train(tmp_path, ("call_after_step", 7, "_limit_files", 100_000))
    assert_disk_error(result, "run/checkpoints")
    assert list_complete_checkpoints(run) == [4]
    assert_finite(run / "checkpoints" / "step-4")
    metrics_content = (run / "metrics.csv").read_bytes()
    best_content = (run / "best.keras").read_bytes()

    result = train(tmp_path, ("call_before", *PREDICT_FUNCTION, "_limit_files", 1, 20))
    assert_disk_error(result, "run/metrics.csv")
    result = train(
        tmp_path, ("call_before", *PREDICT_FUNCTION, "_limit_files", 1, 100_000)
    )
    assert_disk_error(result, "run/best.keras")
    assert (run / "metrics.csv").read_bytes() == metrics_content
    assert (run / "best.keras").read_bytes() == best_content
    names = ["augmented.png", "best.keras", "checkpoints", "metrics.csv", "run.json"]
    assert sorted(os.listdir(run)) == names

    result = train(tmp_path)
    assert (result.returncode, result.stderr, find_resumed_step(result)) == (0, "", 4)
    assert_same_results(run, undisturbed_run)


@pytest.fixture
def small_disk(tmp_path):
    """Mount point of a file system of 32 MiB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this test needs permission to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.full
@pytest.mark.parametrize("free_bytes", [0, 5_000, 200_000, 500_000, 900_000])
@pytest.mark.parametrize("moment", ["checkpoint", "epoch", "end"])
def test_a_full_disk_loses_no_work(
    moment, free_bytes, undisturbed_run, tmp_path, small_disk
):
    """At one moment of the run, all but `free_bytes` of the file system are filled."""
    filler_path = str(small_disk / "filler")
    function, call_number = {
        "checkpoint": (("tensorflow.python.checkpoint.checkpoint_management",
                        "CheckpointManager.save"), 2),
        "epoch": (PREDICT_FUNCTION, 2),
        "end": (("keras_resnet.training.run", "save_network"), 1),
    }[moment]  # fmt: skip
    result = train(
        small_disk,
        ("call_before", *function, "_fill_disk", call_number, filler_path, free_bytes),
    )
    os.remove(filler_path)
    if result.returncode:
        assert_one_line(result, "run/", "ould not write" if free_bytes else "run/")
        newest_step = list_complete_checkpoints(small_disk / "run")[-1]
        assert_finite(small_disk / "run" / "checkpoints" / f"step-{newest_step}")
    else:
        assert free_bytes >= 200_000
    result = train(small_disk)
    assert (result.returncode, result.stderr) == (0, "")
    assert_same_results(small_disk / "run", undisturbed_run)
