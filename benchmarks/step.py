"""Time of a training step: this package's loop beside Keras's `fit`.

python -m benchmarks.step

Every side has a process, and in it the same network, which normalises raw pixels
inside, the same optimizer, and one batch of noise in memory over and over. Ours
is `keras_resnet.steps.Step` on the strategy "mirrored", with the recipe's weight
decay, of which `fit` has none. "fit" has `jit_compile=False` and "fit, XLA"
`jit_compile=True`, which its default of "auto" amounts to for these networks.
`peer/ours` is the median over the rounds, with the lowest and the highest beside
it; above 1 ours is faster.
"""

from absl import flags

from benchmarks.cases import CASES
from benchmarks.side_by_side import alone, compare, take_turns, write_results


def ours(case, steps):
    """Returns a function that takes some of our steps."""
    step, _, taken = case.training()

    def take_steps():
        for _ in range(steps):
            step()
        taken.sums.numpy()  # waits for the device

    return take_steps


def fit(case, steps, xla):
    """Returns a function that takes as many steps by `fit`."""
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


def main(argv):
    """Measures every case and writes `results/step.csv`."""
    del argv
    steps, rows = flags.FLAGS.steps, []
    for case in CASES:
        peers = {
            "fit": alone(fit, case, steps, False),
            "fit, XLA": alone(fit, case, steps, True),
        }
        sides = {"ours": alone(ours, case, steps), **peers}
        times = take_turns(sides, flags.FLAGS.rounds)
        rows += [{**case.columns(), **compare(times, peer, steps)} for peer in peers]
    write_results("step", rows)


if __name__ == "__main__":
    from keras_resnet import programs

    flags.DEFINE_integer("rounds", 5, "Turns of each side.", 1)
    flags.DEFINE_integer("steps", 2, "Steps in a turn.", 1)
    programs.run(main)
