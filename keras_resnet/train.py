"""Trains a ResNet and writes a run folder. The same command resumes the run.

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
    """Fields of `Recipe` and `Execution` that have their own flag."""

    epochs: int | None = option(None, "Number of epochs. Default: the recipe's.", 1)
    batch_size: int | None = option(
        None, "Images per step, over all replicas. Default: the recipe's.", 1
    )
    learning_rate: float | None = option(
        None, "Peak learning rate. Default: the recipe's.", 0.0
    )
    precision: str | None = option(None, "float32, mixed_float16 or mixed_bfloat16.")


@dataclasses.dataclass(frozen=True)
class CommandFlags:
    """Flags of this command that are not options of a run."""

    find_lr: bool = option(False, "Run a learning rate range test instead.")
    local_workers: int = option(0, "Number of local worker processes, for tests.", 0)


def main(argv: list[str]) -> int:
    """Reads the flags, then trains or runs the learning rate range test."""
    del argv
    command = read_flags(CommandFlags)
    changes = read_changes(flags.FLAGS["set"].value or [], read_flags(RecipeFlags))
    options = dataclasses.replace(read_flags(RunOptions), changes=changes)
    if command.local_workers and "KERAS_RESNET_LOCAL_WORKER" not in os.environ:
        return _start_workers(command.local_workers, options)
    # This import loads TensorFlow, which takes seconds. --help must not wait for it.
    from keras_resnet.training import find_learning_rate, train

    if command.find_lr:
        find_learning_rate(options)
        return 0
    verbosity = flags.FLAGS["verbosity"]
    verbose = (2 if (verbosity.value or 0) >= 0 else 0) if verbosity.present else None
    train(options, verbose=verbose)
    return 0


def read_changes(pairs: list[str], recipe_flags: RecipeFlags) -> dict[str, Any]:
    """Returns the new values of the fields that flags or pairs of `--set` change.

    Raises:
        InputError: If a field is set twice or a pair of `--set` is invalid.
    """
    changes: dict[str, Any] = dict(parse_changes(pairs))
    for name, value in vars(recipe_flags).items():
        if value is not None and name in changes:
            raise InputError(f"--{name} and --set {name} exclude each other")
        changes.setdefault(name, value)
    return changes


def _start_workers(count: int, options: RunOptions) -> int:
    """Runs this command in several processes on this machine, for tests."""
    from keras_resnet.distribution import run_local_workers

    if options.strategy != "multi_worker":
        raise InputError(
            "--local_workers needs --strategy=multi_worker. "
            f"Received: --strategy={options.strategy}"
        )
    if not options.model_dir:
        raise InputError("--local_workers needs --model_dir, which the workers share")
    logs = f"{os.path.normpath(options.model_dir)}-workers"
    return run_local_workers(count, [sys.executable, *sys.orig_argv[1:]], logs)


if __name__ == "__main__":
    define_flags(RunOptions)
    define_flags(RecipeFlags)
    define_flags(CommandFlags)
    flags.DEFINE_multi_string(
        "set", [], "New value of another recipe field: FIELD=VALUE"
    )
    run_command(main)
