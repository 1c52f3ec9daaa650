"""No lost work: SIGTERM, SIGKILL at the worst moments, NaN, a full disk.

Every run is the program in a process of its own. It takes 18 steps in 3 epochs with
a checkpoint after each 4, and is held against one that nothing disturbed.
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
from children import Child, assert_same_end, checkpoints_of, noted, run_child
from conftest import assert_one_line

FLAGS = (
    "--model=cifar_resnet8", "--strategy=one_device", "--epochs=3",
    "--batch_size=240", "--set", "checkpoint_every=4", "--set", "ema=0.9",
)  # fmt: skip
MANAGEMENT = "tensorflow.python.checkpoint.checkpoint_management"
SIGKILL = -signal.SIGKILL


def start(folder, *faults, flags=()):
    return Child(
        "keras_resnet.train", *FLAGS, *flags, "--model_dir=run", cwd=folder,
        faults=faults,
    )  # fmt: skip


def train(folder, *faults, flags=()):
    return start(folder, *faults, flags=flags).wait()


def resumed(result):
    """The step after which a run resumed; 0 if it began anew."""
    found = re.search(r"Resuming after step (\d+) of 18\.", result.stdout)
    return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = train(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "run"


def assert_finite(path):
    """A checkpoint that can be read, and all its numbers are finite."""
    reader = tf.train.load_checkpoint(str(path))
    arrays = [reader.get_tensor(name) for name in reader.get_variable_to_shape_map()]
    floats = [a for a in arrays if np.issubdtype(getattr(a, "dtype", "O"), np.floating)]
    assert len(floats) > 50
    assert all(np.isfinite(array).all() for array in floats)


# Moments at which a process is killed, in the order in which a run comes to them:
# the fault, after which step the run then resumes, and what lies in checkpoints/.


def block_index(run, step):
    """What has that name cannot be written, where the data file already is."""
    (run / "checkpoints" / f"step-{step}.index").mkdir(parents=True)


def unblock_index(run, step):
    (run / "checkpoints" / f"step-{step}.index").rmdir()


AFTER_STEP_1 = [("kill_after_step", 1)]
IN_BEST = [("kill_in_archive", "*/.best.keras.*.part.keras", "model.weights.h5")]
WITHOUT_INDEX = [("kill_instead_of_failing",)]
WITHOUT_NOTE = [("kill_before", MANAGEMENT, "update_checkpoint_state_internal")]
BEFORE_DELETION = [("kill_before", MANAGEMENT, "_delete_file_if_exists")]
IN_DELETION = [("kill_before", MANAGEMENT, "_delete_file_if_exists", 2)]
BEFORE_RENAME = [("kill_on", "os.rename", "*/.final.keras.*.part.keras")]
BEFORE_REMOVAL = [("kill_on", "shutil.rmtree", "*/checkpoints")]


def test_killed_at_the_worst_moments(whole, tmp_path):
    """One run that is killed eight times."""
    run = tmp_path / "run"

    killed = train(tmp_path, *AFTER_STEP_1)
    assert killed.returncode == SIGKILL, killed.stderr
    assert checkpoints_of(run) == {"data": [], "index": []}

    killed = train(tmp_path, *IN_BEST)
    assert (killed.returncode, resumed(killed)) == (SIGKILL, 0), killed.stderr
    (partial,) = run.glob(".best.keras.*.part.keras")
    assert partial.stat().st_size > 10_000
    assert not (run / "best.keras").exists()
    assert checkpoints_of(run) == {"data": [4], "index": [4]}

    block_index(run, 8)
    killed = train(tmp_path, *WITHOUT_INDEX)
    unblock_index(run, 8)
    assert (killed.returncode, resumed(killed)) == (SIGKILL, 4), killed.stderr
    assert checkpoints_of(run) == {"data": [4, 8], "index": [4]}

    killed = train(tmp_path, *WITHOUT_NOTE)
    assert (killed.returncode, resumed(killed)) == (SIGKILL, 4), killed.stderr
    assert checkpoints_of(run) == {"data": [4, 8], "index": [4, 8]}
    assert noted(run) == [4]

    killed = train(tmp_path, *BEFORE_DELETION)
    assert (killed.returncode, resumed(killed)) == (SIGKILL, 4), killed.stderr
    assert checkpoints_of(run) == {"data": [4, 8, 12], "index": [4, 8, 12]}
    assert noted(run) == [4, 8, 12]

    killed = train(tmp_path, *IN_DELETION)
    assert (killed.returncode, resumed(killed)) == (SIGKILL, 12), killed.stderr
    found = checkpoints_of(run)
    assert found["index"][-2:] == [12, 16] and len(found["data"]) > len(found["index"])

    killed = train(tmp_path, *BEFORE_RENAME)
    assert (killed.returncode, resumed(killed)) == (SIGKILL, 16), killed.stderr
    assert list(run.glob(".final.keras.*.part.keras"))
    assert not (run / "final.keras").exists()

    killed = train(tmp_path, *BEFORE_REMOVAL)
    assert (killed.returncode, resumed(killed)) == (SIGKILL, 16), killed.stderr
    assert (run / "final.keras").exists() and checkpoints_of(run)["index"]

    ended = train(tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "has ended; nothing to do" in ended.stdout
    assert_same_end(run, whole)


@pytest.mark.full
@pytest.mark.parametrize(
    ("faults", "blocked"),
    [
        (IN_BEST, None),
        (WITHOUT_INDEX, 4),  # The first one.
        (WITHOUT_INDEX, 16),
        (WITHOUT_NOTE, None),
        (IN_DELETION, None),
        ([("kill_on", "os.rename", "*/.metrics.csv.*.part", 2)], None),
        ([("kill_on", "open", "*/.best.keras.*.part.keras", 2)], None),
        ([("kill_on", "os.rename", "*/.curves.png.*.part")], None),
        (
            [("kill_in_archive", "*/.final.keras.*.part.keras", "model.weights.h5")],
            None,
        ),
        ([("kill_on", "os.remove", "*checkpoint")], None),  # Half of checkpoints/.
    ],
)
def test_killed_once(faults, blocked, whole, tmp_path):
    if blocked:
        block_index(tmp_path / "run", blocked)
        (tmp_path / "run" / "run.json").write_bytes((whole / "run.json").read_bytes())
    killed = train(tmp_path, *faults)
    assert killed.returncode == SIGKILL, (killed.stdout, killed.stderr)
    if blocked:
        unblock_index(tmp_path / "run", blocked)
    ended = train(tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.full
def test_killed_at_random_moments(whole, tmp_path):
    """Twenty times; a run that ends before it is killed counts as none."""
    seed = random.randrange(2**32)
    print(f"seed of the moments: {seed}")
    chance, kills, runs = random.Random(seed), 0, 0
    began = time.monotonic()
    train(tmp_path)
    took = time.monotonic() - began
    while kills < 20:
        shutil.rmtree(tmp_path / "run")
        runs += 1
        for _ in range(5):
            child = start(tmp_path)
            moment = chance.uniform(0.1, 1.0) * took
            deadline = time.monotonic() + moment
            while child.runs and time.monotonic() < deadline:
                time.sleep(0.01)
            if not child.runs:
                break
            os.kill(child.pid, signal.SIGKILL)
            kills += child.wait().returncode == SIGKILL
        ended = train(tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert_same_end(tmp_path / "run", whole)
    assert runs <= 20


def assert_stopped(result, step):
    assert result.returncode == 143, (result.stdout, result.stderr)
    assert result.stderr == (
        f"Stopped by SIGTERM after step {step} of 18; the same command resumes\n"
    )


def test_terminated(whole, tmp_path):
    """Within an epoch, and during the evaluation at the end of the second one."""
    run = tmp_path / "run"
    # Steps of half a second, so that the run cannot end before the signal.
    child = start(tmp_path, ("after_step", "each", "_sleep", 0.5))
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "checkpoint").exists():
        assert child.runs and time.monotonic() < deadline
        time.sleep(0.02)
    told = time.monotonic()
    os.kill(child.pid, signal.SIGTERM)
    stopped = child.wait(30)
    assert time.monotonic() - told < 20
    step = noted(run)[-1]
    assert 4 <= step <= 12
    assert_stopped(stopped, step)
    rows = step > 6
    assert (run / "curves.png").exists() == (run / "metrics.csv").exists() == rows

    evaluation = 1 if rows else 2
    place = ("keras_resnet.evaluation.evaluator", "Evaluator.predict")
    stopped = train(tmp_path, ("before", *place, "_terminate", evaluation))
    assert_stopped(stopped, 12)
    assert resumed(stopped) == step
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    ended = train(tmp_path)
    assert (ended.returncode, ended.stderr, resumed(ended)) == (0, "", 12)
    assert_same_end(run, whole)


@pytest.mark.full
def test_terminated_before_there_is_anything_to_draw(whole, tmp_path):
    """After the first step; and at the last one, where the end is near enough."""
    run = tmp_path / "run"
    stopped = train(tmp_path, ("after_step", 1, "_terminate"))
    assert_stopped(stopped, 1)
    assert sorted(os.listdir(run)) == ["augmented.png", "checkpoints", "run.json"]
    stopped = train(tmp_path, ("after_step", 17, "_terminate"))
    assert_stopped(stopped, 18)
    ended = train(tmp_path)
    assert (ended.returncode, resumed(ended)) == (0, 18)
    assert_same_end(run, whole)


@pytest.mark.parametrize("every", [1, 100])
def test_a_loss_that_is_no_number(every, tmp_path):
    """Named with its step, its rate and what there is to go on from."""
    flags = (
        "--learning_rate=1e30",
        "--set",
        "warmup=0.1",
        "--set",
        f"ema={every % 2 / 2}",
    )
    flags = [
        *flags,
        f"--model_dir={tmp_path}/run",
        "--set",
        f"checkpoint_every={every}",
    ]
    result = run_child("keras_resnet.train", *FLAGS[:4], *flags, cwd=tmp_path)
    assert_one_line(result, " step ", "e+2")
    step = int(re.search(r"(?:after|of) step (\d+)", result.stderr)[1])
    # The rate is 0 at the first step; whatever the second one does shows at the third.
    assert step in (2, 3)
    assert not (tmp_path / "run" / "final.keras").exists()
    if every == 100:
        assert "there is no checkpoint before it" in result.stderr
    else:
        last = f"the last good checkpoint is {tmp_path}/run/checkpoints/step-{step - 1}"
        assert last in result.stderr
        assert checkpoints_of(tmp_path / "run")["index"] == list(range(1, step))
        for kept in range(1, step):
            assert_finite(f"{tmp_path}/run/checkpoints/step-{kept}")


def test_weights_that_overflow_before_a_checkpoint_are_not_saved(tmp_path):
    """The loss of that step is a number still; SIGTERM asks for a checkpoint."""
    run = tmp_path / "run"
    broken = train(tmp_path, ("after_step", 8, "_overflow"))
    assert_one_line(broken, "after step 8", f"{run.name}/checkpoints/step-4")
    assert checkpoints_of(run)["index"] == [4]
    broken = train(
        tmp_path, ("after_step", 3, "_overflow"), ("after_step", 3, "_terminate")
    )
    assert_one_line(broken, "after step 7", "step-4")
    assert noted(run) == [4]
    assert_finite(run / "checkpoints" / "step-4")


def assert_disk_error(result, path):
    assert_one_line(result, path)
    assert re.search("File too large|No space left on device", result.stderr)


PREDICT = ("keras_resnet.evaluation.evaluator", "Evaluator.predict")


def test_a_full_disk(whole, tmp_path):
    """A limit on the size of files stands for it; one run meets it three times."""
    run = tmp_path / "run"
    full = train(tmp_path, ("after_step", 7, "_limit_files", 100_000))
    assert_disk_error(full, "run/checkpoints")
    assert noted(run) == [4]
    assert_finite(run / "checkpoints" / "step-4")
    metrics, best = (
        (run / "metrics.csv").read_bytes(),
        (run / "best.keras").read_bytes(),
    )

    full = train(tmp_path, ("before", *PREDICT, "_limit_files", 1, 20))
    assert_disk_error(full, "run/metrics.csv")
    full = train(tmp_path, ("before", *PREDICT, "_limit_files", 1, 100_000))
    assert_disk_error(full, "run/best.keras")
    assert (run / "metrics.csv").read_bytes() == metrics
    assert (run / "best.keras").read_bytes() == best
    names = ["augmented.png", "best.keras", "checkpoints", "metrics.csv", "run.json"]
    assert sorted(os.listdir(run)) == names

    ended = train(tmp_path)
    assert (ended.returncode, ended.stderr, resumed(ended)) == (0, "", 4)
    assert_same_end(run, whole)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.full
@pytest.mark.parametrize("left", [0, 5_000, 200_000, 500_000, 900_000])
@pytest.mark.parametrize("moment", ["checkpoint", "epoch", "end"])
def test_a_disk_that_is_full(moment, left, whole, tmp_path, small_disk):
    """A real one, which has some bytes left."""
    filler = str(small_disk / "filler")
    place, call = {
        "checkpoint": (("tensorflow.python.checkpoint.checkpoint_management",
                        "CheckpointManager.save"), 2),
        "epoch": (PREDICT, 2),
        "end": (("keras_resnet.training.run", "save_network"), 1),
    }[moment]  # fmt: skip
    full = train(small_disk, ("before", *place, "_fill", call, filler, left))
    os.remove(filler)
    if full.returncode:
        assert_one_line(full, "run/", "ould not write" if left else "run/")
        newest = noted(small_disk / "run")[-1]
        assert_finite(small_disk / "run" / "checkpoints" / f"step-{newest}")
    else:
        assert left >= 200_000
    ended = train(small_disk)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_same_end(small_disk / "run", whole)
