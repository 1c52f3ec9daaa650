"""Time of a training step: this package's beside Keras's `fit` and PyTorch.

python -m benchmarks.step

Every side has a process, and in it the same network, which normalises raw pixels
inside, SGD with momentum, and one batch of noise in memory over and over. Ours is
`keras_resnet.training.step.Step` with the recipe's weight decay, of which `fit` has none.
"fit" has `jit_compile=False`, "fit, XLA" `jit_compile=True`, which its default of
"auto" amounts to for these networks, and "fit, oneDNN off" is as TensorFlow is on
older CPUs. PyTorch (`benchmarks.torch_nets`; skipped where it is not installed) is
channels last, eager and by `torch.compile`. All are float32 but those that say
bfloat16. `peer/ours` is the median over the rounds, with the lowest and the highest
beside it; above 1 ours is faster. On an idle machine only: PyTorch's threads wait for
one another without sleeping.
"""

import importlib.util
import os

from benchmarks.cases import CASES
from benchmarks.side_by_side import alone, compare, run, take_turns, write_results


def ours(case, steps, precision="float32"):
    """Returns a function that takes some of our steps."""
    step, _, taken = case.training(precision)

    def take_steps():
        for _ in range(steps):
            step()
        taken.sums.numpy()  # waits for the device

    return take_steps


def fit(case, steps, xla=False, onednn=True):
    """Returns a function that takes as many steps by `fit`."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = str(int(onednn))
    import keras
    import tensorflow as tf

    network = case.network()
    network.compile(
        keras.optimizers.SGD(1e-3, momentum=case.find_recipe().momentum),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=xla,
    )
    data = tf.data.Dataset.from_tensors(case.batch()).repeat()
    return lambda: network.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)


def torch_side(case, steps, compiled=False, bfloat16=False):
    """Returns a function that takes as many steps of PyTorch's."""
    import torch

    from benchmarks.torch_nets import build, make_step

    torch.manual_seed(0)
    network = build(case.model, case.classes).to(memory_format=torch.channels_last)
    recipe = case.find_recipe()
    optimizer = torch.optim.SGD(
        network.parameters(), 1e-3, recipe.momentum, weight_decay=recipe.weight_decay
    )
    shape = (case.batch_size, 3, case.size, case.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(case.batch_size) % case.classes
    precision = torch.bfloat16 if bfloat16 else None
    step = make_step(network, optimizer, compiled, precision)

    def take_steps():
        for _ in range(steps):
            loss = step(images, labels)
        loss.item()

    return take_steps


def main(rounds, steps):
    """Measures every case and writes `results/step.csv`."""
    rows = []
    for case in CASES:
        peers = {
            "fit": (fit, case, steps),
            "fit, XLA": (fit, case, steps, True),
            "fit, oneDNN off": (fit, case, steps, False, False),
            "ours, bfloat16": (ours, case, steps, "mixed_bfloat16"),
        }
        if importlib.util.find_spec("torch"):
            peers |= {
                "torch": (torch_side, case, steps),
                "torch.compile": (torch_side, case, steps, True),
                "torch.compile, bfloat16": (torch_side, case, steps, True, True),
            }
        sides = {"ours": (ours, case, steps), **peers}
        times = take_turns({name: alone(*s) for name, s in sides.items()}, rounds)
        rows += [{**case.columns(), **compare(times, peer, steps)} for peer in peers]
    write_results("step", rows)


if __name__ == "__main__":
    run(main, rounds=(7, "Turns of each side."), steps=(5, "Steps in a turn."))
