"""Recovery of training runs from SIGTERM, SIGKILL and a full disk.

Most runs execute the command `train` in a separate process. A run has 18 steps in 3
epochs and writes a checkpoint every 4 steps. After the recovery, the files of the run
are compared with the files of an undisturbed run.
"""

import os
import random
import re
import shutil
import signal
import time

import children
import pytest
from children import Child, assert_finite, assert_same_results, find_checkpoint_steps
from conftest import assert_one_line, run_python

from keras_resnet.training.run import train as function_train
from keras_resnet.training.step import Step
from keras_resnet.training.worker_group import StopFlag

FLAGS = (
    "--model=cifar_resnet8", "--strategy=one_device", "--epochs=3",
    "--batch_size=240", "--set", "checkpoint_every=4", "--set", "ema=0.9",
)  # fmt: skip
PREDICT_FUNCTION = ("keras_resnet.evaluation.evaluator", "Evaluator.predict")
KILLED = -signal.SIGKILL
CTRL_C_NOTICE = "Stopping with a checkpoint; Ctrl-C again stops at once\n"


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


def train_here(directory):
    """Trains in this process, with the settings of `FLAGS`. This is faster."""
    function_train(
        "cifar_resnet8", strategy="one_device", epochs=3, batch_size=240,
        checkpoint_every=4, ema=0.9, verbose=2, model_dir=str(directory / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory):
    """Folder of a run that ended without an interruption."""
    directory = tmp_path_factory.mktemp("undisturbed")
    train_here(directory)
    return directory / "run"


# Faults that kill the process of a run, in the order in which a run reaches them.


KILL_AFTER_STEP_1 = [("kill_after_step", 1)]
KILL_IN_BEST_KERAS = [
    ("kill_in_archive", "*/.best.keras.*.part.keras", "model.weights.h5")
]
KILL_IN_CHECKPOINT_4 = [
    ("call_after_step", 4, "_limit_files", 20_000),
    ("kill_instead_of_failing",),
]
KILL_IN_CHECKPOINT_16 = [
    ("call_after_step", 16, "_limit_files", 20_000),
    ("kill_instead_of_failing",),
]
KILL_BEFORE_RENAME_OF_8 = [("kill_on", "os.rename", "*/step-8")]
KILL_BEFORE_DELETION = [("kill_on", "shutil.rmtree", "*/step-4")]
KILL_DURING_DELETION = [("kill_on", "os.remove", "state.*", 2)]
KILL_BEFORE_RENAME = [("kill_on", "os.rename", "*/.final.keras.*.part.keras")]
KILL_BEFORE_HASH = [("kill_on", "os.rename", "*/.run.json.*.part", 2)]
KILL_BEFORE_REMOVAL = [("kill_on", "shutil.rmtree", "*/checkpoints")]
KILL_DURING_REMOVAL = [("kill_on", "os.rmdir", "step-1?")]


def assert_stopped(result, step, cause="SIGTERM"):
    status = 143 if cause == "SIGTERM" else 130
    assert result.returncode == status, (result.stdout, result.stderr)
    assert result.stderr.removeprefix(CTRL_C_NOTICE) == (
        f"Stopped by {cause} after step {step} of 18. "
        "The same command resumes the run\n"
    )


def test_a_run_that_ends_four_times_equals_an_undisturbed_one(
    undisturbed_run, tmp_path, monkeypatch, capsys
):
    """The run is killed twice, and stopped by SIGTERM and Ctrl-C. It resumes each time.

    `train` of a notebook ends like that of a command, but with an exception.
    """
    run = tmp_path / "run"

    # The first epoch ends after step 6.
    result = train(tmp_path, *KILL_IN_BEST_KERAS)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 0), result.stderr
    (partial_file,) = run.glob(".best.keras.*.part.keras")
    assert partial_file.stat().st_size > 10_000
    assert not (run / "best.keras").exists()
    assert find_checkpoint_steps(run) == [4]

    result = train(tmp_path, *KILL_BEFORE_RENAME_OF_8)
    assert (result.returncode, find_resumed_step(result)) == (KILLED, 4), result.stderr
    assert list((run / "checkpoints").glob(".step-8.*.part/state.index"))
    assert find_checkpoint_steps(run) == [4]

    # The process resumes after step 4, so its second evaluation is that of epoch 2.
    result = train(tmp_path, ("call_before", *PREDICT_FUNCTION, "_terminate", 2))
    assert_stopped(result, 12)
    assert find_resumed_step(result) == 4
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(Step, "__call__", Step.__call__)  # Restored after the test.
    children.call_after_step(2, "_interrupt")
    message = (
        r"Stopped by Ctrl-C after step 14 of 18\. The same command resumes the run"
    )
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt, match=message):
        train_here(tmp_path)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.undo()
    assert "Resuming after step 12 of 18." in capsys.readouterr().out
    assert find_checkpoint_steps(run)[-1] == 14

    train_here(tmp_path)
    assert "Resuming after step 14 of 18." in capsys.readouterr().out
    assert_same_results(run, undisturbed_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "resumed_step"),
    [
        (KILL_AFTER_STEP_1, 0),
        (KILL_IN_CHECKPOINT_4, 0),  # The first checkpoint is written after step 4.
        (KILL_IN_CHECKPOINT_16, 12),
        (KILL_BEFORE_DELETION, 12),
        (KILL_DURING_DELETION, 12),
        (KILL_BEFORE_RENAME, 16),
        (KILL_BEFORE_HASH, 16),
        (KILL_BEFORE_REMOVAL, None),
        (KILL_DURING_REMOVAL, None),
        ([("kill_on", "os.rename", "*/.metrics.csv.*.part", 2)], 12),
        # The first save of `best.keras`, after step 6, opens the file more than once.
        ([("kill_on", "open", "*/.best.keras.*.part.keras", 2)], 4),
        ([("kill_on", "os.rename", "*/.curves.png.*.part")], 16),
        ([("kill_in_archive", "*/.final.keras.*.part.keras", "model.weights.h5")], 16),
    ],
)
def test_a_run_killed_once_equals_an_undisturbed_one(
    faults, resumed_step, undisturbed_run, tmp_path
):
    """A run that was killed after its end has nothing to resume (`None`)."""
    result = train(tmp_path, *faults)
    assert result.returncode == KILLED, (result.stdout, result.stderr)
    result = train(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert find_resumed_step(result) == (resumed_step or 0)
    has_ended = "has ended; nothing to do" in result.stdout
    assert has_ended == (resumed_step is None)
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


@pytest.mark.slow
def test_sigterm_of_another_process_stops_a_run(undisturbed_run, tmp_path):
    run = tmp_path / "run"
    # Each step sleeps for half a second, so that the run cannot end before the signal.
    process = start_training(tmp_path, ("call_after_step", "each", "_sleep", 0.5))
    deadline = time.monotonic() + 120
    while not find_checkpoint_steps(run):
        assert process.is_running and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    result = process.wait(20)
    step = find_checkpoint_steps(run)[-1]
    assert 4 <= step <= 12
    assert_stopped(result, step)
    for name in ("metrics.csv", "curves.png"):  # The first epoch ends after step 6.
        assert (run / name).exists() == (step > 6)
    result = train(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert find_resumed_step(result) == step
    assert_same_results(run, undisturbed_run)


@pytest.mark.parametrize(
    ("signals", "cause"),
    [
        ([signal.SIGINT], "Ctrl-C"),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGINT], "SIGTERM"),
        ([signal.SIGINT, signal.SIGTERM], "Ctrl-C"),
    ],
)
def test_the_first_signal_is_the_cause_and_a_second_ctrl_c_raises(
    signals, cause, capfd
):
    flag = StopFlag()
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with (
        pytest.raises(KeyboardInterrupt, match="The same command resumes the run"),
        flag.set_by_signals(),
    ):
        for signum in signals:
            os.kill(os.getpid(), signum)
            assert flag.cause
        os.kill(os.getpid(), signal.SIGINT)
    assert flag.cause == cause
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert capfd.readouterr().err == CTRL_C_NOTICE


def test_a_run_in_the_background_ignores_ctrl_c():
    """A shell ignores SIGINT in the commands that it runs in the background."""
    flag = StopFlag()
    original_handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with flag.set_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, original_handler)
    assert flag.cause is None


BEFORE_CHECKPOINT = ("call_before", "tensorflow", "train.Checkpoint.write")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "cause", "step"),
    [
        ([("call_after_step", 5, "_interrupt")], "Ctrl-C", 5),
        # The first evaluation is that after step 6.
        ([("call_before", *PREDICT_FUNCTION, "_interrupt")], "Ctrl-C", 6),
        # The checkpoint of step 7 is the second one.
        (
            [
                ("call_after_step", 7, "_terminate"),
                (*BEFORE_CHECKPOINT, "_interrupt", 2),
            ],
            "SIGTERM",
            7,
        ),
        (
            [
                ("call_after_step", 7, "_interrupt"),
                (*BEFORE_CHECKPOINT, "_interrupt", 2),
            ],
            "a second Ctrl-C",
            4,
        ),
        (
            [
                ("call_after_step", 7, "_interrupt"),
                # The second rename of the second checkpoint.
                ("call_before", "os", "rename", "_interrupt", 4),
            ],
            "a second Ctrl-C",
            4,
        ),
    ],
)
def test_ctrl_c_stops_a_run_with_a_checkpoint_and_twice_at_once(
    faults, cause, step, undisturbed_run, tmp_path
):
    result = train(tmp_path, *faults)
    if cause == "a second Ctrl-C":
        assert (result.returncode, result.stderr.removeprefix(CTRL_C_NOTICE)) == (
            130,
            "Stopped at once by a second Ctrl-C. The same command resumes the run from "
            "its last checkpoint\n",
        )
    else:
        assert_stopped(result, step, cause)
    run = tmp_path / "run"
    assert find_checkpoint_steps(run)[-1] == step
    assert not [p for p in run.glob("**/.*")], "leftovers"
    result = train(tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert find_resumed_step(result) == step
    assert_same_results(run, undisturbed_run)


@pytest.mark.slow
def test_ctrl_c_before_the_training_loses_nothing(undisturbed_run, tmp_path):
    """The network is built, but no handler is installed yet."""
    run_folder_function = ("keras_resnet.training.run", "open_run_folder")
    result = train(tmp_path, ("call_before", *run_folder_function, "_interrupt"))
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
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


def assert_disk_error(result, path):
    assert_one_line(result, path)
    assert re.search("File too large|No space left on device", result.stderr)


@pytest.mark.slow
def test_a_limited_file_size_loses_no_work(undisturbed_run, tmp_path):
    """A limit on the file size simulates a full disk, three times in one run."""
    run = tmp_path / "run"
    result = train(tmp_path, ("call_after_step", 7, "_limit_files", 100_000))
    assert_disk_error(result, "run/checkpoints")
    assert find_checkpoint_steps(run) == [4]
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


@pytest.mark.full
@pytest.mark.parametrize("free_bytes", [0, 5_000, 200_000, 500_000, 900_000])
@pytest.mark.parametrize("moment", ["checkpoint", "epoch", "end"])
def test_a_full_disk_loses_no_work(
    moment, free_bytes, undisturbed_run, tmp_path, small_disk
):
    """At one moment of the run, all but `free_bytes` of the file system are filled."""
    filler_path = str(small_disk / "filler")
    function, call_number = {
        "checkpoint": (("keras_resnet.training.checkpoints", "Checkpoints.save"), 2),
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
        newest_step = find_checkpoint_steps(small_disk / "run")[-1]
        assert_finite(small_disk / "run" / "checkpoints" / f"step-{newest_step}")
    else:
        assert free_bytes >= 200_000
    result = train(small_disk)
    assert (result.returncode, result.stderr) == (0, "")
    assert_same_results(small_disk / "run", undisturbed_run)


@pytest.mark.slow
def test_two_cold_processes_give_identical_results(tmp_path):
    """The recipe uses random augmentation, mixing, erasing and stochastic depth."""
    flags = [
        "--model=cifar_resnet8", "--epochs=1", "--strategy=one_device",
        "--set=policy=trivial_augment", "--set=mixup=0.2", "--set=cutmix=1.0",
        "--set=erase=0.5", "--set=stochastic_depth=0.3",
    ]  # fmt: skip
    for name in ("one", "two"):
        model_dir = f"--model_dir={tmp_path / name}"
        result = run_python("-m", "keras_resnet.train", model_dir, *flags)
        assert result.returncode == 0, result.stderr
    assert_same_results(tmp_path / "one", tmp_path / "two")
