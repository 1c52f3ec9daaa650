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
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from export.bundle import export
from keras_resnet.data.splits import Dataset, Split
from keras_resnet.evaluate import evaluate
from keras_resnet.evaluation.classifier import Classifier
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
SETTINGS = {"strategy": "one_device", "iterations": 4, "verbose": 0}


class Witness(keras.callbacks.Callback):
    """Keeps weak references to itself, to the network and to the optimizer.

    After `last_step` batches it raises an exception, as Ctrl-C does.
    """

    references: list[weakref.ref] = []

    def __init__(self, last_step=None):
        super().__init__()
        self.last_step = last_step

    def on_train_batch_end(self, batch, logs=None):
        objects = (self, self.model, self.model.optimizer)
        self.references.extend(map(weakref.ref, objects))
        if batch + 1 == self.last_step:
            raise KeyboardInterrupt


def train(folder, **settings):
    settings = {**SETTINGS, "callbacks": [Witness()], **settings}
    train_network("cifar_resnet8", model_dir=str(folder), **settings)


def train_in_two_parts(folder):
    with pytest.raises(KeyboardInterrupt):
        train(folder, checkpoint_every=1, callbacks=[Witness(last_step=2)])
    train(folder, checkpoint_every=1)
    train(folder)  # The run has ended, so this call does nothing.


def diverge(folder):
    with pytest.raises(FloatingPointError):
        train(folder, learning_rate=1e30, callbacks=[Witness()])


def export_bundle(model_dir, folder):
    formats = ("saved_model", "float32", "int8")
    export(model_dir, str(folder), formats, images=50)


def classify(model_dir, folder):
    evaluate(model_dir, output=str(folder))
    image = np.zeros((8, 8, 1), np.uint8)
    path = folder / "image.png"
    tf.io.write_file(str(path), tf.io.encode_png(image))
    predict([str(path)], model_dir)


def find_survivors(known_ids):
    gc.collect()
    survivors = [
        o
        for o in gc.get_objects()
        if isinstance(o, WATCHED_TYPES) and id(o) not in known_ids
    ]
    return collections.Counter(type(o).__qualname__ for o in survivors)


def find_resources():
    """Returns open files, number of threads, and entries of the temporary folder."""
    gc.collect()
    # AutoGraph writes the code of functions there, and deletes it when the process ends.
    temporary_names = {
        n for n in os.listdir(tempfile.gettempdir()) if "__autograph_" not in n
    }
    links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return sorted(targets), len(os.listdir("/proc/self/task")), temporary_names


@pytest.fixture
def own_temporary_folder(tmp_path, monkeypatch):
    """Redirects temporary files of this process, apart from those of other processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.mark.slow
@pytest.mark.usefixtures("own_temporary_folder")
@pytest.mark.parametrize(
    "action",
    [
        train,
        train_in_two_parts,
        diverge,
        lambda folder: train(folder, jit_compile=True, deterministic=False),
        lambda folder: train(folder, strategy="mirrored"),
        lambda folder: find_learning_rate(
            "cifar_resnet8", strategy="one_device", model_dir=str(folder)
        ),
    ],
    ids=["ended", "resumed", "diverged", "jit_compile", "mirrored", "find_lr"],
)
def test_nothing_survives_a_run(action, tmp_path):
    gc.collect()
    known_objects = [o for o in gc.get_objects() if isinstance(o, WATCHED_TYPES)]
    known_ids = set(map(id, known_objects))
    files, _, temporary_names = find_resources()
    Witness.references.clear()
    action(tmp_path / "run")
    assert find_survivors(known_ids) == {}
    assert action is not train or len(Witness.references) == 12
    assert [r() for r in Witness.references if r()] == []
    new_files, _, new_temporary_names = find_resources()
    assert new_files == files
    assert new_temporary_names == temporary_names


@pytest.mark.slow
@pytest.mark.usefixtures("own_temporary_folder")
@pytest.mark.parametrize("action", [export_bundle, classify])
def test_nothing_survives_the_use_of_a_network(action, trained_run, tmp_path):
    gc.collect()
    known_objects = [o for o in gc.get_objects() if isinstance(o, WATCHED_TYPES)]
    known_ids = set(map(id, known_objects))
    resources = []
    for name in ("first", "second"):
        action(str(trained_run), tmp_path / name)
        assert find_survivors(known_ids) == {}
        resources.append(find_resources())
    # The first call starts threads that all later calls share.
    assert resources[1] == resources[0]


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
    assert find_resources() == resources
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
        kinds, ours, bare, (0.1, 0.1, 2.0), strict=True
    ):
        print(
            f"{name}: {kind} memory grows by {our_growth:.3f} MiB per call, "
            f"by {bare_growth:.3f} MiB with TensorFlow alone"
        )
        assert our_growth <= max(0.0, bare_growth) + margin


@pytest.mark.full
@pytest.mark.usefixtures("own_temporary_folder")
def test_20_trainings_and_10_exports(trained_run, digits, tmp_path):
    settings = {**SETTINGS, "iterations": 22}
    path, folder = str(tmp_path / "bare.keras"), str(tmp_path / "bare")
    check_growth(
        "train",
        measure_growth(lambda i: train(tmp_path / f"run{i}", **settings), 20),
        measure_growth(lambda i: train_bare(path, digits), 10),
    )
    check_growth(
        "export",
        measure_growth(lambda i: export_bundle(trained_run, tmp_path / f"{i}"), 10),
        measure_growth(lambda i: export_bare(path, folder, digits), 5),
    )


@pytest.mark.full
def test_5000_steps(tmp_path):
    memory_by_epoch = []

    class Meter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            memory_by_epoch.append(read_memory())

    train(tmp_path / "run", iterations=5000, batch_size=16, callbacks=[Meter()])
    assert len(memory_by_epoch) > 50
    growth = memory_by_epoch[-1] - memory_by_epoch[5]
    check_growth("4,500 steps", growth, np.array([0.9, 0.9, 8.0]))


@pytest.mark.full
def test_evaluation_of_100000_images(trained_run, digits, tmp_path):
    indices = np.arange(100_000) % len(digits.train)
    images = Dataset(
        "many",
        digits.classes,
        digits.train.take([]),
        digits.train.take(indices),
        digits.shape,
    )

    def act(i):
        results = evaluate(
            str(trained_run), dataset=images, output=str(tmp_path / f"{i}")
        )
        assert results["images"] == 100_000

    check_growth("evaluate", measure_growth(act, 2), np.zeros(3))
