"""The duties of the training loop, each by itself."""

import os
import signal
import threading
import types

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.data import Dataset, Split, load_dataset
from keras_resnet.distribution import make_strategy
from keras_resnet.spec import RunOptions
from keras_resnet.support.errors import InputError
from keras_resnet.training import worker_group
from keras_resnet.training.batch_source import BatchSource
from keras_resnet.training.epoch_log import EpochLog, format_duration, format_epoch
from keras_resnet.training.preparation import prepare_run
from keras_resnet.training.validation import Validation
from keras_resnet.training.worker_group import StopSignal, WorkerGroup


def prepare(folder, dataset="digits", **options):
    options = {"strategy": "one_device", "model_dir": f"{folder}/run", **options}
    return prepare_run(
        RunOptions.of("cifar_resnet8", dataset, **options), is_quiet=True
    )


# The stop signal.


def test_sigterm_sets_the_flag_while_it_is_handled():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop.handled():
        assert not stop.is_set
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_a_thread_signals_are_left_alone():
    before, ended = signal.getsignal(signal.SIGTERM), []

    def run():
        with StopSignal().handled():
            ended.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [before]


# What workers agree on.


class OtherWorker:
    """Stands for the collective: adds what another worker gives."""

    def __init__(self, monkeypatch, values):
        monkeypatch.setattr(
            worker_group, "sum_over_workers", lambda _, mine: mine + values
        )

    def group(self):
        group = WorkerGroup(make_strategy("one_device"))
        group.count = 2
        return group


def test_one_worker_asks_nobody(monkeypatch):
    monkeypatch.delattr(worker_group, "sum_over_workers")
    group = WorkerGroup(make_strategy("one_device"))
    assert (group.count, group.index, group.is_chief) == (1, 0, True)
    assert group.sum([2.0, 3.0]) == [2.0, 3.0]
    assert group.any(True) and not group.any(False)
    group.check_same_step(7, "run")


@pytest.mark.parametrize("theirs", [0.0, 1.0])
@pytest.mark.parametrize("mine", [False, True])
def test_a_flag_of_any_worker(monkeypatch, mine, theirs):
    group = OtherWorker(monkeypatch, [theirs]).group()
    assert group.any(mine) is (mine or bool(theirs))


def test_workers_go_on_from_the_same_step(monkeypatch):
    group = OtherWorker(monkeypatch, [1.0, 7.0, 49.0]).group()
    group.check_same_step(7, "run")
    with pytest.raises(InputError, match=r"'run', where this one found step 8"):
        group.check_same_step(8, "run")


def test_validation_over_two_workers(tmp_path, monkeypatch):
    """Each counts its images; the loss of all is the mean over images, not workers."""
    run = prepare(tmp_path)
    loss, right, images = 30.0, 90.0, 100.0
    group = OtherWorker(monkeypatch, [loss, right, images]).group()
    alone = Validation(run, WorkerGroup(run.strategy))
    mine = alone._evaluator.predict().summary()
    monkeypatch.setattr(group, "count", 2)
    both = Validation(run, WorkerGroup(run.strategy))
    both._workers = group
    steps = []
    logs = both(lambda: steps.append(1))
    count = mine["images"]
    assert len(steps) == both._evaluator.steps
    assert logs["val_loss"] == pytest.approx(
        (mine["loss"] * count + loss) / (count + images)
    )
    assert logs["val_accuracy"] == pytest.approx(
        (mine["accuracy"] * count + right) / (count + images)
    )


# Batches.


def labels_of(batches, count):
    return [next(batches)[1].numpy().tolist() for _ in range(count)]


def test_batches_from_any_step(tmp_path):
    run = prepare(tmp_path)
    batches, end = BatchSource(run).batches(0)
    assert end == run.total
    later, _ = BatchSource(run).batches(3)
    assert labels_of(later, 2) == labels_of(batches, 5)[3:]


def test_sizes_share_the_run(tmp_path):
    """23 steps in three parts: 8, 8 and 7 of them."""
    run = prepare(tmp_path, epochs=1, sizes=(4, 6, 8))
    source, ends = BatchSource(run), []
    for step, size in ((0, 4), (8, 6), (16, 8)):
        batches, end = source.batches(step)
        assert next(batches)[0].shape[1:3] == (size, size)
        ends.append(end)
    assert ends == [8, 16, 23]


def damaged_digits(damaged):
    """The digits as PNG files, of which some are cut short."""
    digits = load_dataset("digits")

    def encode(split, damaged=()):
        files = [tf.io.encode_png(image).numpy() for image in split.images]
        for place in damaged:
            files[place] = files[place][:20]
        return Split(np.array(files, object), split.labels)

    train = encode(digits.train.take(np.arange(1100)), damaged)
    test = encode(digits.test.take(np.arange(20)))
    return Dataset("pngs", digits.classes, train, test, digits.shape)


def test_a_damaged_image_is_replaced_and_the_step_taken(tmp_path, capsys):
    # Not among the thousand images of which the mean is taken, which are tried before.
    sample = np.linspace(0, 1099, 1000).astype(int)
    images = damaged_digits(np.setdiff1d(np.arange(1100), sample)[:1])
    run = prepare(tmp_path, images, batch_size=1100, learning_rate=0.1)
    source = BatchSource(run)
    batches, _ = source.batches(0)
    with pytest.raises(tf.errors.OpError) as caught:
        next(batches)
    with pytest.raises(InputError, match="1 of 1100 images cannot be decoded"):
        source.refuse_damaged(0)
    source.replace_damaged(0, caught.value)
    assert "1 of 1100 images cannot be decoded" in capsys.readouterr().err
    batches, _ = source.batches(0)
    assert len(next(batches)[1]) == 1100


def test_an_error_without_a_damaged_image_is_raised_again(tmp_path):
    source = BatchSource(prepare(tmp_path))
    error = tf.errors.InternalError(None, None, "of another kind")
    with pytest.raises(tf.errors.InternalError, match="of another kind"):
        source.replace_damaged(0, error)


# Logs.


def log_of(sums, newest=None, first_step=10):
    step = types.SimpleNamespace(
        sums=tf.Variable(tf.constant(sums, tf.float64)),
        optimizer=types.SimpleNamespace(learning_rate=0.25),
    )
    checkpoints = types.SimpleNamespace(newest=lambda: newest)
    return EpochLog(step, checkpoints, first_step), step


def test_an_epoch_s_loss_is_a_mean_over_images():
    log, _ = log_of([30.0, 15.0, 20.0, 2.0])
    assert log.read() == {"loss": 1.5, "accuracy": 0.75}


def test_the_device_is_asked_ten_times_a_second():
    log, step = log_of([30.0, 15.0, 20.0, 2.0])
    assert log.recent()["loss"] == 1.5
    step.sums.assign([60.0, 15.0, 20.0, 2.0])
    assert log.recent()["loss"] == 1.5
    assert log.read()["loss"] == log.recent()["loss"] == 3.0


@pytest.mark.parametrize(
    ("newest", "words"),
    [
        (None, "no checkpoint before it"),
        ("a/step-9", "last good checkpoint is a/step-9"),
    ],
)
def test_a_loss_that_is_no_number_names_its_step(newest, words):
    """Two steps of the epoch were good, after ten of the run: it is the 13th."""
    log, _ = log_of([float("nan"), 0.0, 48.0, 2.0], newest)
    with pytest.raises(
        FloatingPointError, match=r"loss of step 13 .* 0\.25;"
    ) as caught:
        log.read()
    assert words in str(caught.value)


def test_a_line_of_an_epoch():
    line = format_epoch(3, 9, {"loss": 0.5, "val_accuracy": 0.98765}, 1234.5, 3723.4)
    assert line == (
        "epoch 3/9 - loss: 0.5000 - val_accuracy: 0.9877 - 1234 images/s - 1:02:03 left"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (185, "3:05"), (7385, "2:03:05")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
