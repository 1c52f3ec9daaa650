"""Time of a training step, compared with Keras's `fit` and PyTorch.

python -m benchmarks.step

Each implementation has its own process. All train the same network with SGD with
momentum on one batch of noise in memory. The network normalises raw pixels. "ours" is
`keras_resnet.training.step.Step` with the recipe's weight decay. "fit" has no weight
decay and uses `jit_compile=False`. "fit, XLA" uses `jit_compile=True`, which Keras's
default "auto" selects for these networks. "fit, oneDNN off" runs TensorFlow as it runs
on older CPUs. "torch" (`benchmarks.torch_nets`) is optional and uses the channels-last
layout, in eager mode or with `torch.compile`. All implementations use float32, except
those with bfloat16 in their name.

`peer/ours` is the peer's time divided by this package's, as the median over all rounds;
`lowest` and `highest` are the extremes. Above 1, this package is faster. The machine
must be idle, because PyTorch's threads busy-wait for each other.
"""

import importlib.util
import os

from benchmarks.cases import CASES
from benchmarks.side_by_side import isolate, make_row, run, time_turns, write_results


def prepare_ours(case, steps, precision="float32"):
    """Returns a function that makes `steps` training steps with this package."""
    run_step, _, step = case.prepare_training(precision)

    def run_steps():
        for _ in range(steps):
            run_step()
        step.sums.numpy()  # Waits until the device has finished all steps.

    return run_steps


def prepare_fit(case, steps, xla=False, onednn=True):
    """Returns a function that makes `steps` training steps with `fit`."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = str(int(onednn))
    import keras
    import tensorflow as tf

    network = case.build_network()
    network.compile(
        keras.optimizers.SGD(1e-3, momentum=case.find_recipe().momentum),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=xla,
    )
    batches = tf.data.Dataset.from_tensors(case.make_batch()).repeat()
    return lambda: network.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)


def prepare_torch(case, steps, compiled=False, bfloat16=False):
    """Returns a function that makes `steps` training steps with PyTorch."""
    import torch

    from benchmarks.torch_nets import build, make_step

    torch.manual_seed(0)
    network = build(case.model, case.num_classes).to(memory_format=torch.channels_last)
    recipe = case.find_recipe()
    optimizer = torch.optim.SGD(
        network.parameters(), 1e-3, recipe.momentum, weight_decay=recipe.weight_decay
    )
    shape = (case.batch_size, 3, case.size, case.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(case.batch_size) % case.num_classes
    precision = torch.bfloat16 if bfloat16 else None
    step = make_step(network, optimizer, compiled, precision)

    def run_steps():
        for _ in range(steps):
            loss = step(images, labels)
        loss.item()

    return run_steps


def main(num_rounds, steps):
    rows = []
    for case in CASES:
        peers = {
            "fit": (prepare_fit, case, steps),
            "fit, XLA": (prepare_fit, case, steps, True),
            "fit, oneDNN off": (prepare_fit, case, steps, False, False),
            "ours, bfloat16": (prepare_ours, case, steps, "mixed_bfloat16"),
        }
        if importlib.util.find_spec("torch"):
            peers |= {
                "torch": (prepare_torch, case, steps),
                "torch.compile": (prepare_torch, case, steps, True),
                "torch.compile, bfloat16": (prepare_torch, case, steps, True, True),
            }
        setups = {"ours": (prepare_ours, case, steps), **peers}
        times = time_turns({k: isolate(*v) for k, v in setups.items()}, num_rounds)
        rows += [{**case.to_columns(), **make_row(times, k, steps)} for k in peers]
    write_results("step", rows)


if __name__ == "__main__":
    run(main, rounds=(7, "Number of rounds."), steps=(5, "Steps per round."))
