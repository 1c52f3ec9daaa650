"""Trains a ResNet into a run folder; the same command again resumes.

python -m keras_resnet.train --dataset=cifar10 --set label_smoothing=0.1
"""

import dataclasses
import os
import sys
from typing import Any

from absl import flags

from keras_resnet.spec import RunOptions, parse_changes
from keras_resnet.support import (
    InputError,
    define_flags,
    option,
    read_flags,
    run_command,
)


@dataclasses.dataclass(frozen=True)
class RecipeFlags:
    """Fields of `Recipe` and `Execution` that have a flag of their own."""

    epochs: int | None = option(
        None, "Passes over the training images; the recipe's.", 1
    )
    batch_size: int | None = option(
        None, "Images a step, all replicas together; the recipe's.", 1
    )
    learning_rate: float | None = option(None, "The highest; the recipe's.", 0.0)
    precision: str | None = option(None, "float32, mixed_float16 or mixed_bfloat16.")


@dataclasses.dataclass(frozen=True)
class CommandFlags:
    """Flags of this command that are no options of a run."""

    find_lr: bool = option(False, "Try ever higher learning rates instead.")
    local_workers: int = option(0, "Start that many workers here, for trying out.", 0)


def main(argv: list[str]) -> int:
    """Reads the flags and trains."""
    del argv
    command = read_flags(CommandFlags)
    changes = read_changes(flags.FLAGS["set"].value or [], read_flags(RecipeFlags))
    options = dataclasses.replace(read_flags(RunOptions), changes=changes)
    if command.local_workers and "KERAS_RESNET_LOCAL_WORKER" not in os.environ:
        return _start_workers(command.local_workers, options)
    # Only here: both import TensorFlow.
    from keras_resnet.training import find_learning_rate, train

    if command.find_lr:
        find_learning_rate(options)
        return 0
    verbosity = flags.FLAGS["verbosity"]
    verbose = (2 if (verbosity.value or 0) >= 0 else 0) if verbosity.present else None
    train(options, verbose=verbose)
    return 0


def read_changes(pairs: list[str], recipe_flags: RecipeFlags) -> dict[str, Any]:
    """Returns the fields of a recipe that the flags and the pairs of `--set` change.

    Raises:
        InputError: A field is given twice, or `--set` names none.
    """
    changes: dict[str, Any] = dict(parse_changes(pairs))
    for name, value in vars(recipe_flags).items():
        if value is not None and name in changes:
            raise InputError(f"Both --{name} and --set {name} are given; give one")
        changes.setdefault(name, value)
    return changes


def _start_workers(count: int, options: RunOptions) -> int:
    """Starts this command as several processes, for trying out."""
    from keras_resnet.distribution import run_local_workers

    if options.strategy != "multi_worker":
        raise InputError(
            "local_workers goes with --strategy=multi_worker. "
            f"Received: --strategy={options.strategy}"
        )
    if not options.model_dir:
        raise InputError("local_workers needs --model_dir, which they share")
    logs = f"{os.path.normpath(options.model_dir)}-workers"
    return run_local_workers(count, [sys.executable, *sys.orig_argv[1:]], logs)


if __name__ == "__main__":
    define_flags(RunOptions)
    define_flags(RecipeFlags)
    define_flags(CommandFlags)
    flags.DEFINE_multi_string(
        "set", [], "FIELD=VALUE: another field of keras_resnet/spec."
    )
    run_command(main)
