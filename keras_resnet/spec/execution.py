"""How the steps of a run are executed."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Execution:
    """How steps are executed; nothing here is meant to change what is learnt.

    Attributes:
        precision: `"float32"`, `"mixed_float16"` (with loss scaling) or
            `"mixed_bfloat16"`. The saved network is a float32 one.
        jit_compile: whether XLA compiles the step; for one replica.
        steps_per_execution: steps that the device takes before Python is asked
            again.
        sync_bn: whether batch normalisation is over all replicas, or each its own.
        deterministic: whether every run of one command ends with the same bits.
        data_service: address of a `tf.data` service that prepares the batches, such
            as `"grpc://host:5000"`, or several with commas between, which take turns;
            each has exactly one worker. Empty for none.
        checkpoint_every: steps from one checkpoint to the next.
        keep_checkpoints: how many of the last are kept.
        tensorboard: whether scalars, graph and images are written for TensorBoard.
    """

    precision: str = "float32"
    jit_compile: bool = False
    steps_per_execution: int = 1
    sync_bn: bool = True
    deterministic: bool = True
    data_service: str = ""
    # Measured (benchmarks/checkpoint.py): a checkpoint takes as long as a twelfth of
    # a step of ResNet-20 with 128 images of CIFAR's size and a quarter of a step of
    # ResNet-50 with 8 photographs. At this interval that is 0.1 % and 0.25 %; with
    # the digits, whose steps take 0.06 s, it is under 2 %.
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    tensorboard: bool = False


# What may differ when a run is resumed.
FREE_FIELDS = ("data_service", "checkpoint_every", "keep_checkpoints", "tensorboard")
