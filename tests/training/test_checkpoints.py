"""Training checkpoints: deletion, damaged files, state of the callbacks."""

import contextlib
import os
import resource
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from children import find_checkpoint_steps

from keras_resnet.distribution import make_strategy
from keras_resnet.spec.recipes import Recipe
from keras_resnet.support.errors import InputError
from keras_resnet.training import checkpoints
from keras_resnet.training.checkpoints import Checkpoints, Progress
from keras_resnet.training.run_folder import RunFolder
from keras_resnet.training.step import Step


class SmallRun:
    """The checkpoints of a network with two layers, and the state that they save."""

    def __init__(self, folder):
        strategy, recipe = make_strategy("one_device"), Recipe(1, 8, 0.1, ema=0.5)
        with strategy.scope():
            image = keras.Input((4, 4, 1))
            x = keras.layers.Conv2D(16, 3, name="conv1_conv")(image)
            x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
            x = keras.layers.Dense(1000, "softmax", name="predictions")(x)
            self.network = keras.Model(image, x)
        self.step = Step(self.network, strategy, recipe, 20)
        self.network.optimizer = self.step.optimizer
        self.progress = Progress([])
        self.checkpoints = Checkpoints(
            str(folder / "checkpoints"), self.network, self.step, self.progress, 3
        )
        state = [*self.network.variables, *self.step.optimizer.variables]
        self.variables = [v.value for v in state] + self.step.averages

    def set_state(self, step):
        """Sets all numbers that a checkpoint contains to the number of a step."""
        self.progress.step = step
        self.step.sums.assign([step] * 4)
        for variable in self.variables:
            variable.assign(tf.cast(tf.fill(variable.shape, step), variable.dtype))

    def save(self, step):
        self.set_state(step)
        self.checkpoints.save(step)

    def assert_state(self, step):
        assert self.progress.step == step
        for variable in (*self.variables, self.step.sums):
            assert (variable.numpy() == step).all()


@pytest.fixture(scope="module")
def saved_folder(tmp_path_factory):
    """Folder with the checkpoints of steps 8, 12 and 16. That of step 4 was deleted."""
    folder = tmp_path_factory.mktemp("saved")
    run = SmallRun(folder)
    for step in (4, 8, 12, 16):
        run.save(step)
    return folder


@pytest.fixture
def folder(saved_folder, tmp_path):
    """Copy of `saved_folder`. A test may change the copy."""
    return shutil.copytree(saved_folder, tmp_path / "run")


def find_file(folder, step, suffix):
    (path,) = (folder / "checkpoints" / f"step-{step}").glob(f"state.{suffix}*")
    return path


def truncate_data(folder, step):
    path = find_file(folder, step, "data")
    path.write_bytes(path.read_bytes()[:-1000])


def flip_bit(folder, step, suffix):
    path = find_file(folder, step, suffix)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_data_bit(folder, step):
    flip_bit(folder, step, "data")


def flip_index_bit(folder, step):
    flip_bit(folder, step, "index")


def delete_index(folder, step):
    find_file(folder, step, "index").unlink()


def delete_data(folder, step):
    find_file(folder, step, "data").unlink()


def test_the_three_newest_checkpoints_are_kept(folder):
    assert find_checkpoint_steps(folder) == [8, 12, 16]
    run = SmallRun(folder)
    assert run.checkpoints.find_newest() == str(
        folder / "checkpoints" / "step-16" / "state"
    )
    assert run.checkpoints.restore()
    run.assert_state(16)


def test_a_new_folder_contains_no_checkpoint(tmp_path):
    run = SmallRun(tmp_path)
    assert run.checkpoints.find_newest() is None and not run.checkpoints.restore()


@pytest.mark.parametrize(
    "damage_functions",
    [
        (truncate_data,),
        (flip_data_bit,),
        (flip_index_bit,),
        (delete_index,),
        (delete_data,),
        (delete_index, flip_data_bit),
    ],
)
def test_the_newest_readable_checkpoint_is_restored(damage_functions, folder, capsys):
    steps = [16, 12, 8]
    for damage, step in zip(damage_functions, steps, strict=False):
        damage(folder, step)
    run = SmallRun(folder)
    assert run.checkpoints.restore()
    run.assert_state(steps[len(damage_functions)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(damage_functions)
    for line, step in zip(lines, steps, strict=False):
        assert f"checkpoints/step-{step}/state is damaged; an older checkpoint" in line


@pytest.mark.parametrize(
    "damage_functions",
    [(truncate_data, delete_index, delete_data), (delete_index,) * 3],
)
def test_if_all_checkpoints_are_damaged_none_is_overwritten(damage_functions, folder):
    for damage, step in zip(damage_functions, (16, 12, 8), strict=True):
        damage(folder, step)
    paths = list((folder / "checkpoints").glob("*/*"))
    modification_times = [path.stat().st_mtime_ns for path in paths]
    message = r"no earlier checkpoint is intact. Remove .*/checkpoints to start the run"
    with pytest.raises(InputError, match=message):
        SmallRun(folder).checkpoints.restore()
    assert sorted((folder / "checkpoints").glob("*/*")) == sorted(paths)
    assert [path.stat().st_mtime_ns for path in paths] == modification_times


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"half of a li"])
def test_the_list_that_version_0_1_0_wrote_may_be_damaged(content, folder):
    """A power failure could damage the file `checkpoint`, which listed the checkpoints."""
    (folder / "checkpoints" / "checkpoint").write_bytes(content)
    run = SmallRun(folder)
    assert run.checkpoints.restore()
    run.assert_state(16)


def test_a_damaged_checkpoint_is_replaced_or_removed(folder):
    """The run resumes after step 12. It is stopped after step 14, or saves step 16."""
    flip_data_bit(folder, 16)
    other_folder = shutil.copytree(folder, folder.parent / "other")
    for target, step, kept_steps in (
        (folder, 14, [8, 12, 14]),
        (other_folder, 16, [8, 12, 16]),
    ):
        run = SmallRun(target)
        assert run.checkpoints.restore()
        run.save(step)
        assert find_checkpoint_steps(target) == kept_steps
        new_run = SmallRun(target)
        assert new_run.checkpoints.restore()
        new_run.assert_state(step)


def test_a_state_that_was_saved_or_restored_is_not_saved_again(folder):
    """A run that a signal stops after such a step would replace an intact checkpoint."""
    run = SmallRun(folder)
    assert run.checkpoints.restore()
    modification_time = find_file(folder, 16, "data").stat().st_mtime_ns
    run.checkpoints.save(16)
    assert find_file(folder, 16, "data").stat().st_mtime_ns == modification_time
    run.save(20)
    modification_time = find_file(folder, 20, "data").stat().st_mtime_ns
    run.checkpoints.save(20)
    assert find_file(folder, 20, "data").stat().st_mtime_ns == modification_time


@contextlib.contextmanager
def limit_file_size():
    """Makes files of more than 1,000 bytes impossible, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_does_not_damage_earlier_checkpoints(folder):
    run = SmallRun(folder)
    with (
        limit_file_size(),
        pytest.raises(OSError, match="Could not write a checkpoint") as error,
    ):
        run.save(20)
    assert "\n" not in str(error.value)
    assert find_checkpoint_steps(folder) == [8, 12, 16]
    new_run = SmallRun(folder)
    assert new_run.checkpoints.restore()
    new_run.assert_state(16)


def write_checkpoint(folder, **objects):
    checkpoint = tf.train.Checkpoint(**objects)
    tf.train.CheckpointManager(
        checkpoint, str(folder / "checkpoints"), 5, checkpoint_name="step"
    ).save(40)


def test_a_checkpoint_of_other_software_is_refused(folder):
    write_checkpoint(folder, model=tf.Variable(1.0))
    with pytest.raises(InputError, match="was not written by keras_resnet"):
        SmallRun(folder).checkpoints.restore()


def test_a_checkpoint_of_a_newer_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT_NUMBER", 2)
    write_checkpoint(folder, progress=Progress([]))
    monkeypatch.undo()
    with pytest.raises(InputError, match="has format 2, from a newer keras_resnet"):
        SmallRun(folder).checkpoints.restore()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    write_checkpoint(tmp_path, progress=Progress([]), sums=tf.Variable([0.0] * 3))
    with pytest.raises(InputError, match="is damaged or belongs to another network"):
        SmallRun(tmp_path).checkpoints.restore()


def test_best_keras_contains_the_first_of_the_best_epochs(tmp_path):
    """The second and fourth epoch are equally accurate. The second epoch is saved.

    The fifth epoch is more accurate, but the disk is full.
    """
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    network.origin = None
    folder = RunFolder(str(tmp_path))
    folder.set_model(network)
    for epoch, accuracy in enumerate((0.5, 0.9, 0.7, 0.9)):
        network.set_weights([np.full((2, 1), epoch), np.zeros(1)])
        folder.on_epoch_end(epoch, {"val_accuracy": accuracy})
    best_network = keras.models.load_model(tmp_path / "best.keras")
    assert best_network.get_weights()[0][0, 0] == 1
    content = (tmp_path / "best.keras").read_bytes()
    with limit_file_size(), pytest.raises(OSError, match=r"best\.keras"):
        folder.on_epoch_end(4, {"val_accuracy": 1.0})
    assert sorted(os.listdir(tmp_path)) == ["best.keras", "metrics.csv"]
    assert (tmp_path / "best.keras").read_bytes() == content


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
