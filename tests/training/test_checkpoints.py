"""Training checkpoints: deletion, damaged files, resuming with other settings."""

import importlib.util
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from children import (
    assert_same_results,
    find_checkpoint_steps,
    list_complete_checkpoints,
    run_child,
)
from conftest import assert_one_line

from keras_resnet.training.checkpoints import Progress
from keras_resnet.training.run_folder import RunFolder

FLAGS = ("--model=cifar_resnet8", "--strategy=one_device", "--batch_size=240")
RUN_FLAGS = ("--epochs=3", "--set", "checkpoint_every=4", "--set", "keep_checkpoints=3")


def train(directory, *flags, faults=()):
    return run_child(
        "keras_resnet.train", *FLAGS, *flags, "--model_dir=run", cwd=directory,
        faults=faults,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory):
    """Folder of a run that ended without an interruption."""
    directory = tmp_path_factory.mktemp("undisturbed")
    assert train(directory, *RUN_FLAGS).returncode == 0
    return directory / "run"


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory):
    """Folder of a run that was killed after 17 of 18 steps."""
    directory = tmp_path_factory.mktemp("killed")
    result = train(directory, *RUN_FLAGS, faults=[("kill_after_step", 17)])
    assert result.returncode == -signal.SIGKILL
    return directory / "run"


@pytest.fixture
def resumable_run(killed_run, tmp_path):
    """Copy of the folder `killed_run`. A test may change the copy."""
    return shutil.copytree(killed_run, tmp_path / "run")


def find_file(folder, step, suffix):
    (path,) = (folder / "checkpoints").glob(f"step-{step}.{suffix}*")
    return path


def truncate_data(folder, step):
    path = find_file(folder, step, "data")
    path.write_bytes(path.read_bytes()[:-100_000])


def flip_data_bit(folder, step):
    path = find_file(folder, step, "data")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_index_bit(folder, step):
    path = find_file(folder, step, "index")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete_index(folder, step):
    find_file(folder, step, "index").unlink()


def delete_data(folder, step):
    find_file(folder, step, "data").unlink()


def test_the_three_newest_checkpoints_are_kept(killed_run):
    assert find_checkpoint_steps(killed_run) == {
        "data": [8, 12, 16],
        "index": [8, 12, 16],
    }
    assert list_complete_checkpoints(killed_run) == [8, 12, 16]


@pytest.mark.parametrize(
    ("damage_functions", "steps", "resumed_step"),
    [
        ((truncate_data,), [16], 12),
        ((delete_index, flip_data_bit), [16, 12], 8),
        pytest.param((flip_data_bit,), [16], 12, marks=pytest.mark.full),
        pytest.param((flip_index_bit,), [16], 12, marks=pytest.mark.full),
        pytest.param((delete_data,), [16], 12, marks=pytest.mark.full),
        pytest.param((delete_index,), [16], 12, marks=pytest.mark.full),
    ],
)
def test_a_run_resumes_from_the_newest_readable_checkpoint(
    damage_functions, steps, resumed_step, resumable_run, undisturbed_run
):
    for damage, step in zip(damage_functions, steps, strict=True):
        damage(resumable_run, step)
    result = train(resumable_run.parent, *RUN_FLAGS)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps, strict=True):
        assert f"checkpoints/step-{step} is damaged" in line
    assert f"Resuming after step {resumed_step} of 18." in result.stdout
    assert_same_results(resumable_run, undisturbed_run)


@pytest.mark.parametrize(
    "damage_functions",
    [(truncate_data, delete_index, delete_data), (delete_index,) * 3],
)
def test_if_all_checkpoints_are_damaged_none_is_overwritten(
    damage_functions, resumable_run
):
    for damage, step in zip(damage_functions, (16, 12, 8), strict=True):
        damage(resumable_run, step)
    modification_times = {
        path: path.stat().st_mtime_ns
        for path in (resumable_run / "checkpoints").iterdir()
    }
    result = train(resumable_run.parent, *RUN_FLAGS)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last_line = result.stderr.splitlines()[-1]
    assert last_line.startswith("error: ") and "to start the run again" in last_line
    assert "no earlier checkpoint is intact" in last_line
    assert modification_times == {
        path: path.stat().st_mtime_ns
        for path in (resumable_run / "checkpoints").iterdir()
    }
    shutil.rmtree(resumable_run / "checkpoints")  # Advice of the error message.
    assert train(resumable_run.parent, *RUN_FLAGS).returncode == 0


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"half of a li"])
def test_a_damaged_list_of_checkpoints_is_an_error(content, resumable_run):
    """A power failure can damage the file `checkpoint`, which lists the checkpoints."""
    (resumable_run / "checkpoints" / "checkpoint").write_bytes(content)
    assert_one_line(
        train(resumable_run.parent, *RUN_FLAGS), "checkpoints/checkpoint", "is damaged"
    )
    assert find_checkpoint_steps(resumable_run)["index"] == [8, 12, 16]


def test_resuming_with_other_settings_is_refused(resumable_run):
    result = train(
        resumable_run.parent,
        "--epochs=4",
        "--seed=1",
        "--set",
        "ema=0.5",
        "--shortcut=B",
    )
    assert_one_line(
        result,
        "began with other settings",
        "epochs (began with 3, now 4)",
        "seed (began with 0, now 1)",
        "ema (began with 0.0, now 0.5)",
        "shortcut (began with 'A', now 'B')",
    )
    differences = result.stderr.partition("Different: ")[2]
    # The checkpoint settings may differ, so the message does not name them.
    assert differences.count("began with") == 4


@pytest.fixture
def data_service():
    """URL of a `tf.data` service with one worker."""
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = service.WorkerServer(service.WorkerConfig(dispatcher_address=address))
    yield dispatcher.target
    del worker


def test_a_run_resumes_with_other_execution_settings(
    resumable_run, undisturbed_run, data_service
):
    """The results do not depend on checkpoint settings or on a data service."""
    flags = ("--epochs=3", "--set", "checkpoint_every=1", "--set", "keep_checkpoints=5")
    result = train(resumable_run.parent, *flags, faults=[("kill_after_step", 2)])
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert "Resuming after step 16 of 18." in result.stdout
    assert find_checkpoint_steps(resumable_run)["index"] == [8, 12, 16, 17]
    flags = ["--epochs=3", "--set", f"data_service={data_service}"]
    if importlib.util.find_spec("tensorboard"):
        flags += ["--set", "tensorboard=True"]
    result = train(resumable_run.parent, *flags)
    assert result.returncode == 0, result.stderr
    assert "Resuming after step 17 of 18." in result.stdout
    shutil.rmtree(resumable_run / "tensorboard", ignore_errors=True)
    assert_same_results(resumable_run, undisturbed_run)


def test_best_keras_contains_the_first_of_the_best_epochs(tmp_path):
    """The second and fourth epoch are equally accurate. The second epoch is saved."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.origin = None
    folder = RunFolder(str(tmp_path))
    folder.set_model(network)
    for epoch, accuracy in enumerate((0.5, 0.9, 0.7, 0.9)):
        network.set_weights([np.full((2, 1), epoch), np.zeros(1)])
        folder.on_epoch_end(epoch, {"val_accuracy": accuracy})
    best_network = keras.models.load_model(tmp_path / "best.keras")
    assert best_network.get_weights()[0][0, 0] == 1


def test_numpy_numbers_of_callbacks_are_restored():
    """NumPy's real numbers and booleans are restored. Complex numbers are not saved."""

    class Callback(keras.callbacks.Callback):
        best = count = is_done = phase = None

    source_callback, target_callback = Callback(), Callback()
    source_callback.best, source_callback.count = np.float32(0.1), np.int64(2**40)
    source_callback.is_done, source_callback.phase = np.bool_(True), np.complex64(1j)
    source_progress = Progress([source_callback])
    target_progress = Progress([target_callback])
    source_progress.step = 1
    target_progress.deserialize(source_progress.serialize())
    target_progress.restore_callbacks()
    assert (target_callback.best, target_callback.count) == (np.float32(0.1), 2**40)
    assert target_callback.is_done and target_callback.phase is None


def test_attributes_of_callbacks_are_restored():
    """Numbers, text and arrays are restored bit for bit. Other values do not change."""

    class Callback(keras.callbacks.Callback):
        def __init__(self, **attributes):
            super().__init__()
            self.opaque = object()
            vars(self).update(attributes)

    attributes = {
        "count": 2**40,
        "best": np.nextafter(1, 2),
        "worst": -np.inf,
        "word": "é",
        "weights": [
            np.arange(6, dtype="int8").reshape(2, 3),
            np.float32([0.1, np.nan]),
        ],
        "nested": {"a": [1, {"b": None, "c": True}]},
        "empty": np.zeros((0, 3)),
    }
    source_progress = Progress([Callback(**attributes)])
    source_progress.step = 7
    target_callback = Callback()
    opaque_object = target_callback.opaque
    target_progress = Progress([target_callback])
    target_progress.deserialize(source_progress.serialize())
    target_progress.restore_callbacks()
    assert target_progress.step == 7
    assert target_callback.opaque is opaque_object
    for name in ("count", "best", "worst", "word", "nested"):
        assert getattr(target_callback, name) == attributes[name]
    for actual, expected in zip(
        [*target_callback.weights, target_callback.empty],
        [*attributes["weights"], attributes["empty"]],
        strict=True,
    ):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tobytes() == expected.tobytes()
