"""Memory, files, threads and temporary folders after runs in one process.

`gc.collect()` is called before objects are counted, because networks and datasets are
parts of reference cycles. `keras.backend.clear_session()` is never called.

The growth of memory is compared with a loop of TensorFlow and Keras alone, which is not
free of leaks. Each `tf.custom_gradient` in a graph, for example in `ReplicaContext.all_reduce`
of Keras's optimizers, stays in a global table with its graph. XLA keeps compiled functions.
LiteRT keeps a dict for each calibration image.
"""

import collections
import ctypes
import gc
import os
import sys
import tempfile
import time
import unittest.mock
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from export.bundle import export
from keras_resnet.data.splits import Dataset, Split
from keras_resnet.distribution.strategies import make_strategy
from keras_resnet.evaluate import evaluate
from keras_resnet.evaluation.classifier import Classifier, load_classifier
from keras_resnet.evaluation.evaluator import Evaluator
from keras_resnet.predict import predict
from keras_resnet.training.loop import Loop
from keras_resnet.training.preparation import Run
from keras_resnet.training.rate_range import find_learning_rate
from keras_resnet.training.run import train as train_network
from keras_resnet.training.step import Step

# Types of which no object of a run may survive the run.
WATCHED_TYPES = (
    keras.Layer, keras.Optimizer, keras.callbacks.Callback, keras.Variable, tf.Variable,
    tf.data.Dataset, tf.data.Iterator, Classifier, Dataset, Evaluator, Loop, Run, Split,
    Step,
)  # fmt: skip
SETTINGS = {"strategy": "one_device", "iterations": 3, "verbose": 0}


references: list[weakref.ref] = []  # Filled by `Witness`.


class Witness(keras.callbacks.Callback):
    """Keeps weak references to itself, to the network and to the optimizer."""

    def __init__(self, on_batch=lambda batch: None):
        super().__init__()
        self.on_batch = on_batch

    def on_train_batch_end(self, batch, logs=None):
        objects = (self, self.model, self.model.optimizer)
        references.extend(map(weakref.ref, objects))
        self.on_batch(batch)


def train(folder, **settings):
    settings = {**SETTINGS, "callbacks": [Witness()], **settings}
    train_network("cifar_resnet8", model_dir=str(folder), **settings)


def train_in_two_parts(folder):
    def interrupt(batch):
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder, checkpoint_every=1, callbacks=[Witness(interrupt)])
    train(folder, checkpoint_every=1)
    train(folder)  # The run has ended, so this call does nothing.


def train_with_xla(folder):
    first_device = tf.config.list_logical_devices("CPU")[:1]
    # XLA requires a single replica, and conftest.py has split the CPU into two devices.
    # TensorFlow kept the functions that a `MirroredStrategy`, the default, had run.
    with unittest.mock.patch("tensorflow.config.list_logical_devices") as list_devices:
        list_devices.return_value = first_device
        train(folder, strategy="mirrored", jit_compile=True, deterministic=False)


def diverge(folder):
    with pytest.raises(FloatingPointError):
        train(folder, learning_rate=1e30)


def find_rate(folder):
    find_learning_rate("cifar_resnet8", strategy="one_device", model_dir=str(folder))


def mirror(folder):
    train(folder, strategy="mirrored")


def export_bundle(model_dir, folder, formats=("saved_model", "float32")):
    export(str(model_dir), str(folder), formats, images=50)


def classify(model_dir, folder):
    evaluate(model_dir, output=str(folder))
    image = np.zeros((8, 8, 1), np.uint8)
    path = folder / "image.png"
    tf.io.write_file(str(path), tf.io.encode_png(image))
    predict([str(path)], model_dir)


def find_watched_objects():
    gc.collect()
    return [o for o in gc.get_objects() if isinstance(o, WATCHED_TYPES)]


def find_survivors(known_objects):
    """Returns the number of new objects of each watched type that still exist."""
    known_ids = {id(known_object) for known_object in known_objects}
    objects = (o for o in find_watched_objects() if id(o) not in known_ids)
    return collections.Counter(type(o).__qualname__ for o in objects)


def find_resources():
    """Returns open files, number of threads, and entries of the temporary folder."""
    gc.collect()
    # AutoGraph writes the code of functions there, and deletes it when the process ends.
    temporary_names = {
        n
        for n in os.listdir(tempfile.gettempdir())
        if "__autograph_" not in n and n != "__pycache__"
    }
    links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    # Matplotlib keeps its fonts open.
    targets = sorted(target for target in targets if not target.endswith(".ttf"))
    return targets, len(os.listdir("/proc/self/task")), temporary_names


def check_resources(expected_resources):
    """Checks the open files, threads and temporary names; see `find_resources`."""
    files, num_threads, temporary_names = expected_resources
    deadline = time.monotonic() + 10  # Threads of tf.data end a little later.
    while find_resources()[1] > num_threads and time.monotonic() < deadline:
        time.sleep(0.1)
    new_files, new_num_threads, new_temporary_names = find_resources()
    assert new_files == files
    assert new_num_threads <= num_threads
    assert new_temporary_names == temporary_names


@pytest.fixture
def own_temporary_folder(tmp_path, monkeypatch):
    """Redirects temporary files of this process, apart from those of other processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.mark.usefixtures("own_temporary_folder")
@pytest.mark.parametrize(
    ("action", "survivors"),
    [
        pytest.param(train_in_two_parts, {}, marks=pytest.mark.slow),
        # The variable belongs to the strategy, which the process keeps.
        pytest.param(train_with_xla, {"ResourceVariable": 1}, marks=pytest.mark.slow),
        pytest.param(diverge, {}, marks=pytest.mark.full),
        pytest.param(find_rate, {}, marks=pytest.mark.full),
        # TensorFlow keeps the graph (see above), whose last operation updates `sums`.
        pytest.param(mirror, {"ResourceVariable": 1}, marks=pytest.mark.full),
    ],
)
def test_nothing_survives_a_run(action, survivors, tmp_path):
    known_objects = find_watched_objects()
    files, _, temporary_names = find_resources()
    references.clear()
    action(tmp_path / "run")
    assert find_survivors(known_objects) == survivors
    assert len(references) >= 9 or action in (diverge, find_rate)
    assert [r() for r in references if r()] == []
    new_files, _, new_temporary_names = find_resources()
    assert new_files == files
    assert new_temporary_names == temporary_names


@pytest.mark.slow
@pytest.mark.usefixtures("own_temporary_folder")
@pytest.mark.parametrize("action", [export_bundle, classify])
def test_nothing_survives_the_use_of_a_network(action, trained_run, tmp_path):
    known_objects, resources = find_watched_objects(), []
    for name in ("first", "second"):
        action(str(trained_run), tmp_path / name)
        assert find_survivors(known_objects) == {}
        resources.append(find_resources())
    # The first call starts threads that all later calls share.
    check_resources(resources[0])


# Counts in one process, next to TensorFlow and Keras alone.


class _MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
            "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def read_memory():
    """Returns the memory in use, in MiB: of C++, of Python's objects, and resident."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _MallocInfo
    malloc_info = libc.mallinfo2()
    native = malloc_info.uordblks + malloc_info.hblkhd
    python = sys.getallocatedblocks() * 64  # The mean size of a block is near 64 bytes.
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return np.array([native, python, resident]) / 2**20


def measure_growth(action, count):
    """Returns the mean growth of each kind of memory in a call, in MiB; see `read_memory`.

    Two calls before the first measurement fill the caches of TensorFlow and Matplotlib.
    """
    for i in range(count + 2):
        if i == 2:
            memory, resources = read_memory(), find_resources()
        action(i)
    growth = (read_memory() - memory) / count
    check_resources(resources)
    return growth


def make_bare_network():
    layers = keras.layers
    inputs = outputs = keras.Input((8, 8, 1))
    for filters in (16, 16, 16, 32, 32, 64, 64):
        outputs = layers.Conv2D(filters, 3, padding="same", use_bias=False)(outputs)
        outputs = layers.ReLU()(layers.BatchNormalization()(outputs))
    outputs = layers.GlobalAveragePooling2D()(outputs)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(outputs))


def train_bare(path, digits):
    """Trains, evaluates and saves a network of the same size with Keras alone."""
    network = make_bare_network()
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    optimizer.build(network.trainable_variables)

    @tf.function
    def take_step(batches):
        images, labels = next(batches)
        with tf.GradientTape() as tape:
            probabilities = network(images, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            loss = tf.reduce_mean(losses)
        variables = network.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    @tf.function(reduce_retracing=True)
    def classify_batch(images):
        return network(images, training=False)

    train_split = tf.data.Dataset.from_tensor_slices(
        (digits.train.images, digits.train.labels)
    )
    batches = iter(train_split.shuffle(2000).batch(64).prefetch(2))
    for _ in range(22):
        take_step(batches)
    for images in tf.data.Dataset.from_tensor_slices(digits.test.images).batch(64):
        classify_batch(images)
    checkpoint = tf.train.Checkpoint(variables=[v.value for v in network.variables])
    checkpoint.write(f"{path}.checkpoint")
    network.save(path)


def export_bare(path, folder, digits):
    """Converts a network to the formats of `export_bundle` with TensorFlow alone."""
    from ai_edge_litert.interpreter import Interpreter

    network = keras.models.load_model(path)
    network.export(folder, verbose=False)
    images = digits.train.images[:200].astype(np.float32)
    for is_int8 in (False, True):
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if is_int8:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([x[None]] for x in images)
        interpreter = Interpreter(model_content=converter.convert())
        interpreter.allocate_tensors()
        interpreter.invoke()


def check_growth(name, ours, bare):
    """Checks the growth in a call, which is allowed to exceed TensorFlow's by little."""
    kinds = ("C++", "Python", "resident")
    for kind, our_growth, bare_growth, margin in zip(
        kinds, ours, bare, (0.1, 0.1, 4.0), strict=True
    ):
        print(
            f"{name}: {kind} memory grows by {our_growth:.3f} MiB per call, "
            f"by {bare_growth:.3f} MiB with TensorFlow alone"
        )
        assert our_growth <= max(0.0, bare_growth) + margin


@pytest.mark.full
@pytest.mark.usefixtures("own_temporary_folder")
def test_memory_after_20_trainings(digits, tmp_path):
    path = str(tmp_path / "bare.keras")

    def act(i):
        train(tmp_path / f"run{i}", iterations=22)

    bare_growth = measure_growth(lambda i: train_bare(path, digits), 6)
    check_growth("train", measure_growth(act, 20), bare_growth)


@pytest.mark.full
@pytest.mark.usefixtures("own_temporary_folder")
def test_memory_after_10_exports(trained_run, digits, tmp_path):
    path, folder = str(tmp_path / "bare.keras"), str(tmp_path / "bare")
    train_bare(path, digits)

    def act(i):
        formats = ("saved_model", "float32", "int8")
        export_bundle(trained_run, tmp_path / f"bundle{i}", formats)

    bare_growth = measure_growth(lambda i: export_bare(path, folder, digits), 4)
    check_growth("export", measure_growth(act, 10), bare_growth)


@pytest.mark.full
def test_memory_after_5000_steps(tmp_path):
    memory_by_epoch = []

    class Meter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            memory_by_epoch.append(read_memory())

    train(tmp_path / "run", iterations=5000, batch_size=16, callbacks=[Meter()])
    assert len(memory_by_epoch) > 50
    growth = memory_by_epoch[-1] - memory_by_epoch[5]
    # 1 MiB would be 230 bytes per step.
    check_growth("4,500 steps", growth, np.array([1, 1, 6]))


@pytest.mark.full
@pytest.mark.usefixtures("own_temporary_folder")
def test_memory_after_evaluating_100000_images(trained_run, digits):
    split = digits.train.take(np.arange(100_000) % len(digits.train))

    def act(_):
        classifier = load_classifier(str(trained_run))
        strategy = make_strategy("one_device")
        evaluator = Evaluator(
            classifier.model, split, classifier.preprocessing, 256, strategy
        )
        assert evaluator()["images"] == 100_000

    for i in range(5):  # The buffers of tf.data reach their size after some calls.
        act(i)
    check_growth("evaluate", measure_growth(act, 6), np.zeros(3))
