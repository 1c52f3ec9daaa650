"""Preparation of a training run: devices, images, network and run folder."""

import dataclasses
import math
import os

import keras
import tensorflow as tf

from keras_resnet.data import Dataset, Preprocessing, TrainingBatches
from keras_resnet.distribution import local_replicas, make_strategy
from keras_resnet.evaluation import RunRecord
from keras_resnet.nets import profile
from keras_resnet.spec import Execution, RunOptions, RunSpec
from keras_resnet.support import InputError, derive_seed, to_printable
from keras_resnet.training.network import make_network
from keras_resnet.training.optimizers import Schedule
from keras_resnet.training.resolution import resolve_execution, resolve_run
from keras_resnet.training.run_folder import continue_run, has_ended, remove_leftovers
from keras_resnet.training.step import Step
from keras_resnet.training.worker_group import WorkerGroup
from keras_resnet.weights import find_pixel_format, open_checkpoint


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that is ready to start.

    Attributes:
        spec: Settings of the run, with all defaults resolved.
        network: Network, built in the scope of `strategy`.
        strategy: Strategy that distributes the steps over devices.
        images: Dataset, whose `test` is the validation split.
        preprocessing: Conversion of images to the network's input.
        model_dir: Path of the run folder.
        devices: See `RunRecord.devices`.
    """

    spec: RunSpec
    network: keras.Model
    strategy: tf.distribute.Strategy
    images: Dataset
    preprocessing: Preprocessing
    model_dir: str
    devices: list[tuple[int, str, int]]

    @property
    def steps_per_epoch(self) -> int:
        return self.spec.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.spec.total_steps

    @property
    def epochs(self) -> int:
        """Number of passes over the training images. The last pass may be partial."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def record(self) -> RunRecord:
        """Content of `run.json`."""
        classes, devices = self.images.classes, self.devices
        return RunRecord(self.spec, classes, self.preprocessing, devices=devices)

    @property
    def tensorboard_dir(self) -> str:
        return os.path.join(self.model_dir, "tensorboard")

    def make_step(self, steps: int, rate: Schedule | None = None) -> Step:
        """Makes the training step. `Step` explains the arguments."""
        spec, network = self.spec, self.network
        return Step(network, self.strategy, spec.recipe, steps, spec.execution, rate)

    def get_batches(
        self, images: Dataset | None = None, size: int | None = None
    ) -> TrainingBatches:
        """Returns the training batches of this process.

        Args:
            images: Dataset with the training images. Default: the dataset of the run.
            size: Image height and width in pixels. Default: the network's input size.
        """
        images, preprocessing = images or self.images, self.preprocessing
        if size:
            preprocessing = dataclasses.replace(preprocessing, height=size, width=size)
        pixel_format = find_pixel_format(self.network)
        return TrainingBatches(
            split=images.train,
            preprocessing=preprocessing,
            recipe=self.spec.recipe,
            replicas=self.spec.replicas,
            seed=self.spec.seed,
            local_replicas=local_replicas(self.strategy),
            num_classes=len(images.classes),
            mean=pixel_format.mean if pixel_format else (0.0,),
            service=self.spec.execution.data_service,
            format=self.spec.format,
        )


def prepare_run(
    options: RunOptions, suffix: str = "", is_quiet: bool = False
) -> Run | None:
    """Prepares a run; returns `None` if the run has already ended.

    Args:
        options: Options that the user passed.
        suffix: Text that is appended to the name of the run folder. A run with a suffix
            is temporary, and an existing folder is not inspected.
        is_quiet: Whether to suppress all output.

    Raises:
        InputError: If an option is invalid, or `model_dir` contains another run.
    """
    execution = resolve_execution(options)
    strategy = _start_devices(options, execution)
    workers = WorkerGroup(strategy)
    spec, images, preprocessing = resolve_run(
        options, execution, strategy.num_replicas_in_sync
    )
    if spec.images[1] < workers.count:
        raise InputError(
            "Every worker needs an image of the validation split. Received: "
            f"{spec.dataset} with {spec.images[1]} images for {workers.count} worker(s)"
        )
    model_dir = _choose_folder(options.model_dir, spec) + suffix
    spec, devices = continue_run(model_dir, spec)
    if not suffix and has_ended(model_dir, spec, images.classes):
        if workers.is_chief:
            remove_leftovers(model_dir, remove_checkpoints=True)
        if not is_quiet:
            print(f"The run in {to_printable(model_dir)} has ended; nothing to do.")
        return None
    checkpoint = open_checkpoint(spec.weights, spec.model) if spec.weights else None
    if checkpoint and (pixel_format := checkpoint.origin.pixels):
        crop = 1.0 if images.shape else spec.recipe.test_crop or pixel_format.crop
        preprocessing = dataclasses.replace(
            preprocessing, crop=crop, interpolation=pixel_format.interpolation
        )
    with strategy.scope():
        network, images = make_network(spec, images, preprocessing, checkpoint)
    run = Run(spec, network, strategy, images, preprocessing, model_dir, devices)
    if workers.is_chief and not is_quiet:
        print(to_printable(_describe_run(run)), flush=True)
    return run


def _start_devices(options: RunOptions, execution: Execution) -> tf.distribute.Strategy:
    """Seeds the random number generators and makes the strategy."""
    seed = options.seed
    if not 0 <= seed < 2**31:
        raise InputError(f"seed must be from 0 to 2**31 - 1. Received: seed={seed}")
    if keras.config.image_data_format() != "channels_last":
        raise InputError("Training requires image_data_format 'channels_last' in Keras")
    keras.utils.set_random_seed(derive_seed(seed, "initial weights") % 2**32)
    if execution.deterministic:
        tf.config.experimental.enable_op_determinism()
    if execution.tensorboard:
        try:
            import tensorboard  # noqa: F401
        except ModuleNotFoundError:
            raise InputError(
                "tensorboard requires the tensorboard package: pip install "
                "'keras-resnet-zoo[tensorboard]'. Received: tensorboard=True"
            ) from None
    strategy = make_strategy(options.strategy, options.virtual_devices)
    num_replicas = strategy.num_replicas_in_sync
    if execution.jit_compile and num_replicas > 1:
        raise InputError(
            "jit_compile requires one replica (it fails on virtual CPUs and is untested"
            f" on several GPUs). Received: jit_compile with {num_replicas} replicas"
        )
    return strategy


def _choose_folder(model_dir: str | os.PathLike[str] | None, spec: RunSpec) -> str:
    """Returns the path of the run folder. Default: `runs/MODEL-DATASET`."""
    if model_dir:
        return os.path.normpath(model_dir)
    source = spec.dataset.partition(":")[2] or spec.dataset
    name = os.path.basename(source).replace(":", "-") or "root"
    return os.path.join("runs", f"{spec.model}-{name}")


def _describe_run(run: Run) -> str:
    """Returns the line that describes the run and is printed before training."""
    spec, input_shape = run.spec, "x".join(map(str, run.preprocessing.shape))
    details = f", from {spec.weights}" if spec.weights else ""
    details += f", {' '.join(spec.freeze)} frozen" if spec.freeze else ""
    return (
        f"{spec.model} (shortcut {spec.shortcut}{details}, "
        f"{profile(run.network).parameters:,} parameters) on {run.images.name}: "
        f"{spec.images[0]:,} training and {spec.images[1]:,} validation images, "
        f"{input_shape}, {len(run.images.classes)} classes; {spec.recipe_name}, "
        f"{run.epochs} epochs of {run.steps_per_epoch} steps, batch size "
        f"{spec.recipe.batch_size}, learning rate {spec.recipe.learning_rate:g}; "
        f"{spec.strategy} on {spec.replicas} replica(s); writing to {run.model_dir}"
        + (_DEVICES_CHANGED if run.devices else "")
    )


_DEVICES_CHANGED = (
    ". The run has changed its devices. Its weights equal those of a run on unchanged "
    "devices only up to rounding, not bit for bit"
)
