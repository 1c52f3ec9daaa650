"""Trains a ResNet and writes a run folder. Repeating the command resumes the run.

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
    add_flags,
    exit_now,
    option,
    read_flags,
    run_command,
)


@dataclasses.dataclass(frozen=True)
class RecipeFlags:
    """Fields of `Recipe` and `Execution` that have separate flags besides `--set`."""

    epochs: int | None = option(
        None, "Number of epochs. Default: set by the recipe.", 1
    )
    batch_size: int | None = option(
        None, "Images per step over all replicas. Default: set by the recipe.", 1
    )
    learning_rate: float | None = option(
        None, "Peak learning rate. Default: set by the recipe.", 0.0
    )
    precision: str | None = option(
        None, "Precision: float32 (default), mixed_float16 or mixed_bfloat16."
    )


@dataclasses.dataclass(frozen=True)
class CommandFlags:
    """Flags of this command that are not settings of the training run."""

    find_lr: bool = option(False, "Run a learning rate range test instead of training.")
    local_workers: int = option(
        0, "Number of local worker processes for multi_worker; 0: none.", 0
    )


def main(argv: list[str]) -> int:
    """Trains, starts local workers or runs a learning rate range test."""
    del argv
    command_flags = read_flags(CommandFlags)
    changes = read_changes(flags.FLAGS["set"].value or [], read_flags(RecipeFlags))
    options = dataclasses.replace(read_flags(RunOptions), changes=changes)
    if command_flags.local_workers:
        if "KERAS_RESNET_LOCAL_WORKER" not in os.environ:
            _start_workers(command_flags.local_workers, options)  # Does not return.
        from keras_resnet.distribution import end_with_launcher

        end_with_launcher()
    # TensorFlow, which takes seconds to import, is not imported for `--help`.
    from keras_resnet.training import find_learning_rate, train

    if command_flags.find_lr:
        find_learning_rate(options)
        return 0
    verbosity = flags.FLAGS["verbosity"]
    verbose = (2 if (verbosity.value or 0) >= 0 else 0) if verbosity.present else None
    train(options, verbose=verbose)
    return 0


def read_changes(pairs: list[str], recipe_flags: RecipeFlags) -> dict[str, Any]:
    """Merges separate flags and FIELD=VALUE pairs of `--set` into one dict.

    The dict maps field names to new values. `None` keeps the default of the field.

    Raises:
        InputError: If a field is set twice or a pair is invalid.
    """
    changes: dict[str, Any] = dict(parse_changes(pairs))
    for name, value in vars(recipe_flags).items():
        if value is not None and name in changes:
            raise InputError(f"--{name} and --set {name} cannot be combined")
        changes.setdefault(name, value)
    return changes


def _start_workers(count: int, options: RunOptions) -> None:
    """Runs this command in `count` local processes, then ends this process."""
    from keras_resnet.distribution import run_local_workers

    if options.strategy != "multi_worker":
        raise InputError(
            "--local_workers needs --strategy=multi_worker. "
            f"Received: --strategy={options.strategy}"
        )
    if not options.model_dir:
        raise InputError("--local_workers needs --model_dir, which the workers share")
    log_folder = f"{os.path.normpath(options.model_dir)}-workers"
    command = [sys.executable, *sys.orig_argv[1:]]
    # On a busy machine, the end of Python takes many seconds after TensorFlow's import.
    exit_now(run_local_workers(count, command, log_folder))


if __name__ == "__main__":
    add_flags(RunOptions)
    add_flags(RecipeFlags)
    add_flags(CommandFlags)
    flags.DEFINE_multi_string(
        "set", [], "FIELD=VALUE: sets a field of Recipe or Execution"
    )
    run_command(main)
