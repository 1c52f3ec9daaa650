"""Checkpoints: which are kept, damaged ones, and resuming with other settings."""

import importlib.util
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from children import assert_same_end, checkpoints_of, noted, run_child
from conftest import assert_one_line

from keras_resnet.training.checkpoints import Progress
from keras_resnet.training.run_folder import RunFolder

FLAGS = ("--model=cifar_resnet8", "--strategy=one_device", "--batch_size=240")
USUAL = ("--epochs=3", "--set", "checkpoint_every=4", "--set", "keep_checkpoints=3")


def train(folder, *flags, faults=()):
    return run_child(
        "keras_resnet.train", *FLAGS, *flags, "--model_dir=run", cwd=folder,
        faults=faults,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, *USUAL).returncode == 0
    return folder / "run"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed after 17 of its 18 steps."""
    folder = tmp_path_factory.mktemp("killed")
    died = train(folder, *USUAL, faults=[("kill_after_step", 17)])
    assert died.returncode == -signal.SIGKILL
    return folder / "run"


@pytest.fixture
def run(killed, tmp_path):
    return shutil.copytree(killed, tmp_path / "run")


def file_of(run, step, ending):
    (path,) = (run / "checkpoints").glob(f"step-{step}.{ending}*")
    return path


def truncate(run, step):
    path = file_of(run, step, "data")
    path.write_bytes(path.read_bytes()[:-100_000])


def flip(run, step):
    """One bit in the middle of the numbers."""
    path = file_of(run, step, "data")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_index(run, step):
    path = file_of(run, step, "index")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_index(run, step):
    file_of(run, step, "index").unlink()


def lose_data(run, step):
    file_of(run, step, "data").unlink()


def test_as_many_as_asked_for_are_kept(killed):
    assert checkpoints_of(killed) == {"data": [8, 12, 16], "index": [8, 12, 16]}
    assert noted(killed) == [8, 12, 16]


@pytest.mark.parametrize(
    ("damage", "steps", "left"),
    [
        ((truncate,), [16], 12),
        ((lose_index, flip), [16, 12], 8),
        pytest.param((flip,), [16], 12, marks=pytest.mark.full),
        pytest.param((flip_index,), [16], 12, marks=pytest.mark.full),
        pytest.param((lose_data,), [16], 12, marks=pytest.mark.full),
        pytest.param((lose_index,), [16], 12, marks=pytest.mark.full),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(damage, steps, left, run, whole):
    for do, step in zip(damage, steps, strict=True):
        do(run, step)
    result = train(run.parent, *USUAL)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps, strict=True):
        assert f"checkpoints/step-{step} is damaged; taking the one before" in line
    assert f"Resuming after step {left} of 18." in result.stdout
    assert_same_end(run, whole)


@pytest.mark.parametrize(
    "damage", [(truncate, lose_index, lose_data), (lose_index,) * 3]
)
def test_when_all_are_damaged_nothing_is_overwritten(damage, run):
    for do, step in zip(damage, (16, 12, 8), strict=True):
        do(run, step)
    before = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").iterdir()}
    result = train(run.parent, *USUAL)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "to begin anew" in last
    assert "none before it is whole" in last
    assert before == {p: p.stat().st_mtime_ns for p in (run / "checkpoints").iterdir()}
    shutil.rmtree(run / "checkpoints")  # As it says.
    assert train(run.parent, *USUAL).returncode == 0


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"half of a li"])
def test_a_damaged_note_does_not_begin_anew(content, run):
    """As a machine leaves it that lost its power."""
    (run / "checkpoints" / "checkpoint").write_bytes(content)
    assert_one_line(train(run.parent, *USUAL), "checkpoints/checkpoint", "is damaged")
    assert checkpoints_of(run)["index"] == [8, 12, 16]


def test_other_settings_are_refused(run):
    result = train(
        run.parent, "--epochs=4", "--seed=1", "--set", "ema=0.5", "--shortcut=B"
    )
    assert_one_line(
        result,
        "began with other settings",
        "epochs (began with 3, now 4)",
        "seed (began with 0, now 1)",
        "ema (began with 0.0, now 0.5)",
        "shortcut (began with 'A', now 'B')",
    )
    named = result.stderr.partition("Different: ")[2]
    assert named.count("began with") == 4  # And not checkpoint_every.


@pytest.fixture
def service():
    """A `tf.data` service of one worker."""
    kinds = tf.data.experimental.service
    dispatcher = kinds.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = kinds.WorkerServer(kinds.WorkerConfig(dispatcher_address=address))
    yield dispatcher.target
    del worker


def test_what_may_differ(run, whole, service):
    """Another place for the batches, other checkpoints: the same bits."""
    flags = ("--epochs=3", "--set", "checkpoint_every=1", "--set", "keep_checkpoints=5")
    died = train(run.parent, *flags, faults=[("kill_after_step", 2)])
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert "Resuming after step 16 of 18." in died.stdout
    assert checkpoints_of(run)["index"] == [8, 12, 16, 17]
    flags = ["--epochs=3", "--set", f"data_service={service}"]
    if importlib.util.find_spec("tensorboard"):
        flags += ["--set", "tensorboard=True"]
    result = train(run.parent, *flags)
    assert result.returncode == 0, result.stderr
    assert "Resuming after step 17 of 18." in result.stdout
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
    assert_same_end(run, whole)


def test_best_is_of_the_best_epoch(tmp_path):
    """Of two that are equally good, the first."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.origin = None
    folder = RunFolder(str(tmp_path))
    folder.set_model(network)
    for epoch, accuracy in enumerate((0.5, 0.9, 0.7, 0.9)):
        network.set_weights([np.full((2, 1), epoch), np.zeros(1)])
        folder.on_epoch_end(epoch, {"val_accuracy": accuracy})
    best = keras.models.load_model(tmp_path / "best.keras")
    assert best.get_weights()[0][0, 0] == 1


def test_numbers_of_numpy_survive():
    """As `logs` hold them; text and complex numbers of NumPy stay where they are."""

    class Plain(keras.callbacks.Callback):
        best = count = wrong = phase = None

    saved, other = Plain(), Plain()
    saved.best, saved.count = np.float32(0.1), np.int64(2**40)
    saved.wrong, saved.phase = np.bool_(True), np.complex64(1j)
    progress, restored = Progress([saved]), Progress([other])
    progress.step = 1
    restored.deserialize(progress.serialize())
    restored.restore_callbacks()
    assert (other.best, other.count) == (np.float32(0.1), 2**40)
    assert other.wrong and other.phase is None


def test_state_of_callbacks_survives():
    """Numbers, text, lists, dicts and arrays bit for bit; what is not plain stays."""

    class Plain(keras.callbacks.Callback):
        def __init__(self, **state):
            super().__init__()
            self.hidden = object()
            vars(self).update(state)

    state = {
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
    saved = Progress([Plain(**state)])
    saved.step = 7
    other = Plain()
    hidden = other.hidden
    restored = Progress([other])
    restored.deserialize(saved.serialize())
    restored.restore_callbacks()
    assert restored.step == 7
    assert other.hidden is hidden
    for key in ("count", "best", "worst", "word", "nested"):
        assert getattr(other, key) == state[key]
    for found, expected in zip(
        [*other.weights, other.empty], [*state["weights"], state["empty"]], strict=True
    ):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
