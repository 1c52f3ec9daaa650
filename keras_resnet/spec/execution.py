"""Execution settings of a training run, such as precision and checkpoint interval."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Execution:
    """Execution settings of a training run, which should not affect the accuracy.

    Attributes:
        precision: `"float32"`, `"mixed_float16"` (with loss scaling) or
            `"mixed_bfloat16"`. The saved network is always float32.
        jit_compile: Whether XLA compiles the training step; requires a single replica.
        steps_per_execution: Number of training steps per call from Python.
        sync_bn: Whether batch normalisation uses statistics of the images of all
            replicas. Otherwise each replica uses the statistics of its own images.
        deterministic: Whether repeated runs of a command produce bit-identical weights.
        data_service: Address of a `tf.data` service that prepares the batches, such as
            `"grpc://host:5000"`, or several addresses separated by commas. Each service
            must have exactly one worker. Default: no service is used.
        checkpoint_every: Number of steps between training checkpoints.
        keep_checkpoints: Number of most recent training checkpoints that are kept.
        tensorboard: Whether scalars, the graph and images are written for TensorBoard.
    """

    precision: str = "float32"
    jit_compile: bool = False
    steps_per_execution: int = 1
    sync_bn: bool = True
    deterministic: bool = True
    data_service: str = ""
    # benchmarks/checkpoint.py measures how long writing a checkpoint takes: 1/12 of a
    # training step of ResNet-20 with 128 images of 32x32 pixels, and 1/4 of a step of
    # ResNet-50 with 8 photographs. Once per 100 steps, this is 0.1 % or 0.25 % of the
    # training time. For the digits, whose steps take only 0.06 s, it is less than 2 %.
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    tensorboard: bool = False


# Fields of `Execution` that may be changed when a run is resumed.
FREE_ON_RESUME = ("data_service", "checkpoint_every", "keep_checkpoints", "tensorboard")
