"""Parts of the training loop: stop flag, worker group, batch source and epoch log."""

import dataclasses
import os
import signal
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.data import Dataset, Split, load_dataset
from keras_resnet.distribution import make_strategy
from keras_resnet.spec import Execution, RunOptions
from keras_resnet.support.errors import InputError
from keras_resnet.training import network, preparation, worker_group
from keras_resnet.training.batch_source import BatchSource
from keras_resnet.training.epoch_log import EpochLog, format_duration, format_epoch
from keras_resnet.training.preparation import prepare_run
from keras_resnet.training.validation import Validation
from keras_resnet.training.worker_group import StopFlag, WorkerGroup
from keras_resnet.zoo import ResNet


def prepare(folder, dataset="digits", **options):
    options = {"strategy": "one_device", "model_dir": f"{folder}/run", **options}
    return prepare_run(
        RunOptions.from_keywords("cifar_resnet8", dataset, **options), is_quiet=True
    )


# Tests of `StopFlag`.


@pytest.mark.parametrize(
    ("signum", "cause"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]
)
def test_signals_set_the_flag_inside_the_context(signum, cause):
    original_handler = signal.getsignal(signum)
    stop_flag = StopFlag()
    with stop_flag.set_by_signals():
        assert stop_flag.cause is None
        os.kill(os.getpid(), signum)
        assert stop_flag.cause == cause
    assert signal.getsignal(signum) is original_handler


def test_a_thread_does_not_change_the_signal_handler():
    original_handler, handlers = signal.getsignal(signal.SIGTERM), []

    def record_handler():
        with StopFlag().set_by_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=record_handler)
    thread.start()
    thread.join()
    assert handlers == [original_handler]


# Tests of `WorkerGroup`.


class OtherWorker:
    """Simulates a second worker that adds `values` to every sum over workers."""

    def __init__(self, monkeypatch, values):
        monkeypatch.setattr(
            worker_group, "sum_over_workers", lambda _, own_values: own_values + values
        )

    def make_group(self):
        group = WorkerGroup(make_strategy("one_device"))
        group.count = 2
        return group


def test_one_worker_does_not_communicate(monkeypatch):
    monkeypatch.delattr(worker_group, "sum_over_workers")
    group = WorkerGroup(make_strategy("one_device"))
    assert (group.count, group.index, group.is_chief) == (1, 0, True)
    assert group.sum([2.0, 3.0]) == [2.0, 3.0]
    assert group.any(True) and not group.any(False)
    group.check_same_step(7, "run")


@pytest.mark.parametrize("other_flag", [0.0, 1.0])
@pytest.mark.parametrize("own_flag", [False, True])
def test_any_worker_can_set_a_flag(monkeypatch, own_flag, other_flag):
    group = OtherWorker(monkeypatch, [other_flag]).make_group()
    assert group.any(own_flag) is (own_flag or bool(other_flag))


def test_workers_must_resume_from_the_same_step(monkeypatch):
    group = OtherWorker(monkeypatch, [1.0, 7.0, 49.0]).make_group()
    group.check_same_step(7, "run")
    with pytest.raises(InputError, match=r"'run', where this worker found step 8"):
        group.check_same_step(8, "run")


def test_validation_averages_over_the_images_of_all_workers(tmp_path, monkeypatch):
    """Workers with more images have more influence on the loss and the accuracy."""
    run = prepare(tmp_path)
    other_loss, num_other_correct, num_other_images = 30.0, 90.0, 100.0
    group = OtherWorker(
        monkeypatch, [other_loss, num_other_correct, num_other_images]
    ).make_group()
    single_validation = Validation(run, WorkerGroup(run.strategy))
    own_summary = single_validation._evaluator.predict().summarise()
    monkeypatch.setattr(group, "count", 2)
    group_validation = Validation(run, WorkerGroup(run.strategy))
    group_validation._workers = group
    group.index = 1
    own_split = Validation(run, group)._evaluator._split
    np.testing.assert_array_equal(own_split.labels, run.images.test.labels[1::2])
    step_calls = []
    logs = group_validation(lambda: step_calls.append(1))
    num_own_images = own_summary["images"]
    assert len(step_calls) == group_validation._evaluator.steps
    assert logs["val_loss"] == pytest.approx(
        (own_summary["loss"] * num_own_images + other_loss)
        / (num_own_images + num_other_images)
    )
    assert logs["val_accuracy"] == pytest.approx(
        (own_summary["accuracy"] * num_own_images + num_other_correct)
        / (num_own_images + num_other_images)
    )


def test_every_worker_needs_an_image_of_the_validation_split(tmp_path, monkeypatch):
    digits = load_dataset("digits")
    digits = dataclasses.replace(digits, test=digits.test.take(slice(1)))
    assert prepare(tmp_path, digits).spec.images == (1437, 1)
    monkeypatch.setattr(worker_group, "worker_count", lambda _: 2)
    with pytest.raises(InputError, match="with 1 images for 2 worker"):
        prepare(tmp_path, digits)


# Tests of `BatchSource`.


def read_labels(batches, count):
    return [next(batches)[1].numpy().tolist() for _ in range(count)]


def test_batches_can_start_at_any_step(tmp_path):
    run = prepare(tmp_path)
    batches, end_step = BatchSource(run).batches_from(0)
    assert end_step == run.total_steps
    later_batches, _ = BatchSource(run).batches_from(3)
    assert read_labels(later_batches, 2) == read_labels(batches, 5)[3:]


def test_a_damaged_image_is_replaced(tmp_path, capsys):
    digits = load_dataset("digits")
    train, test = digits.train.take(np.arange(1100)), digits.test.take(np.arange(20))
    files = [np.array([tf.io.encode_png(x).numpy() for x in s.images], object)
             for s in (train, test)]  # fmt: skip
    train, test = Split(files[0], train.labels), Split(files[1], test.labels)
    dataset = Dataset("pngs", digits.classes, train, test, digits.shape)
    run = prepare(tmp_path, dataset, batch_size=16, learning_rate=0.1)
    # `prepare` would already replace a damaged image. The image is damaged afterwards.
    damaged_files = train.images.copy()
    index = run.get_batches().find_step_indices(0)[3]
    damaged_files[index] = damaged_files[index][:20]
    train = dataclasses.replace(train, images=damaged_files)
    run = dataclasses.replace(run, images=dataclasses.replace(dataset, train=train))
    source = BatchSource(run)
    assert source.draw_first_batch() is None
    batches, _ = source.batches_from(0)
    with pytest.raises(tf.errors.OpError) as error:
        next(batches)
    assert source.replace_damaged(0, error.value) == (index,)
    assert "1 of 1100 images cannot be decoded" in capsys.readouterr().err
    batches, _ = source.batches_from(0)
    assert len(next(batches)[1]) == 16


def test_errors_without_a_damaged_image_are_raised_again(tmp_path):
    source = BatchSource(prepare(tmp_path))
    error = tf.errors.InternalError(None, None, "device failure")
    with pytest.raises(tf.errors.InternalError, match="device failure"):
        source.replace_damaged(0, error)


# Tests of `EpochLog` and of progress lines.


def make_epoch_log(sums, newest_checkpoint=None, first_step=10):
    """Returns an `EpochLog` and the simulated `Step` whose sums it reads."""
    step = types.SimpleNamespace(
        sums=tf.Variable(tf.constant(sums, tf.float64)),
        optimizer=types.SimpleNamespace(learning_rate=0.25),
    )
    checkpoints = types.SimpleNamespace(find_newest=lambda: newest_checkpoint)
    return EpochLog(step, checkpoints, first_step), step


def test_the_loss_of_an_epoch_is_the_mean_over_images():
    log, _ = make_epoch_log([30.0, 15.0, 20.0, 2.0])
    assert log.read() == {"loss": 1.5, "accuracy": 0.75}


def test_recent_logs_are_cached_for_a_tenth_of_a_second():
    log, step = make_epoch_log([30.0, 15.0, 20.0, 2.0])
    assert log.read_recent()["loss"] == 1.5
    step.sums.assign([60.0, 15.0, 20.0, 2.0])
    assert log.read_recent()["loss"] == 1.5
    assert log.read()["loss"] == log.read_recent()["loss"] == 3.0


@pytest.mark.parametrize(
    ("newest_checkpoint", "message"),
    [(None, "no checkpoint exists"), ("a/step-9", "last good checkpoint is a/step-9")],
)
def test_a_loss_of_nan_is_reported_with_its_step(newest_checkpoint, message):
    """Ten steps of earlier epochs and two steps with a finite loss precede step 13."""
    log, _ = make_epoch_log([float("nan"), 0.0, 48.0, 2.0], newest_checkpoint)
    with pytest.raises(FloatingPointError, match=r"loss of step 13 .* 0\.25;") as error:
        log.read()
    assert message in str(error.value)


def test_an_epoch_is_formatted_as_one_line():
    line = format_epoch(3, 9, {"loss": 0.5, "val_accuracy": 0.98765}, 1234.5, 3723.4)
    assert line == (
        "epoch 3/9 - loss: 0.5000 - val_accuracy: 0.9877 - 1234 images/s - 1:02:03 left"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (185, "3:05"), (7385, "2:03:05")]
)
def test_durations_are_formatted_in_minutes_or_hours(seconds, text):
    assert format_duration(seconds) == text


# Tests of the random seeds.


def test_seeds_share_no_initial_weights_and_no_stochastic_depth():
    """No state of the global generators occurs twice, and no small seed is used."""
    states, num_seeds = [], 100
    for seed in range(num_seeds):
        np.random.seed(seed)
        states.append(np.random.get_state()[1].tobytes())
        options = RunOptions(strategy="one_device", seed=seed)
        preparation._start_devices(options, Execution(deterministic=False))
        states.append(np.random.get_state()[1].tobytes())
    assert len(set(states)) == 2 * num_seeds
    model = ResNet("cifar_resnet14", stochastic_depth=0.5)
    dropouts = [la for la in model.layers if isinstance(la, keras.layers.Dropout)]
    seeds = []
    for seed in range(num_seeds):
        network._seed_stochastic_depth(model, seed)
        seeds += [tuple(la.seed_generator.state.numpy()) for la in dropouts]
    assert len(set(seeds)) == len(seeds) == num_seeds * 5
    # The two numbers have 32 and 31 bits.
    assert max(a for a, _ in seeds) > 2**31 and max(b for _, b in seeds) > 2**30
