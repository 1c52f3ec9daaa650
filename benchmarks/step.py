"""Time of a training step: this package's loop beside Keras's `fit`.

python -m benchmarks.step

Every side has its own copy of the same network, which normalises raw pixels
inside, the same optimizer, and one batch of noise in memory over and over. Ours
is `make_train_step` on the strategy "mirrored", with the recipe's weight decay,
of which `fit` has none. "fit" has `jit_compile=False` and "fit, XLA"
`jit_compile=True`, which its default of "auto" amounts to for these networks.
`peer/ours` is the median over the rounds, with the lowest and the highest beside
it; above 1 ours is faster.
"""

import dataclasses

from absl import flags

from benchmarks.side_by_side import compare, take_turns, write_results


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its data: `size` pixels squared in `classes` classes."""

    model: str
    recipe: str
    batch_size: int
    size: int
    classes: int
    steps: int

    def network(self):
        """Returns a compiled network, as a training run has it."""
        from keras_resnet import data, training
        from keras_resnet.preprocessing import Preprocessing

        noise = data.Split(*(each.numpy() for each in self.batch()))
        classes = tuple(map(str, range(self.classes)))
        shape = (self.size, self.size, 3)
        images = data.Dataset("noise", classes, noise, noise, shape)
        settings = {"model": self.model, "shortcut": None, "stride_on": "1x1"}
        network = training._build(settings, images, Preprocessing(*shape))
        training._compile(network, self.find_recipe(), steps=1000)
        return network

    def find_recipe(self):
        """Returns the recipe, at a rate that noise cannot blow up."""
        from keras_resnet.recipes import find_recipe

        return find_recipe(self.recipe, learning_rate=1e-3)

    def batch(self):
        """Returns noise: uint8 images and int32 labels."""
        import tensorflow as tf

        shape = (self.batch_size, self.size, self.size, 3)
        images = tf.random.stateless_uniform(shape, (0, 0), 0, 256, tf.int32)
        labels = tf.range(self.batch_size) % self.classes
        return tf.cast(images, tf.uint8), labels

    def ours(self):
        """Returns a function that takes some steps, and what a run keeps."""
        import tensorflow as tf

        from keras_resnet.strategies import make_strategy
        from keras_resnet.training import make_train_step

        strategy = make_strategy("mirrored")
        with strategy.scope():
            network = self.network()
        weights = tf.fill([self.batch_size], 1 / self.batch_size)
        batches = tf.data.Dataset.from_tensors((*self.batch(), weights)).repeat()
        batches = iter(
            strategy.distribute_datasets_from_function(lambda context: batches)
        )
        step, sums = make_train_step(network, strategy, self.find_recipe().weight_decay)

        def take_steps():
            for _ in range(self.steps):
                step(batches)
            sums.numpy()

        return take_steps, network, sums

    def fit(self, xla):
        """Returns a function that takes the steps by `fit`."""
        import tensorflow as tf

        network = self.network()
        network.jit_compile = xla
        batches = tf.data.Dataset.from_tensors(self.batch()).repeat()
        return lambda: network.fit(batches, steps_per_epoch=self.steps, verbose=0)


CASES = (
    Case("resnet20", "paper_cifar", 128, 32, 10, steps=20),
    Case("resnet50", "photographs", 8, 224, 1000, steps=2),
)


def main(argv):
    """Measures every case and writes `results/step.csv`."""
    del argv
    rows = []
    for case in CASES:
        peers = {"fit": case.fit(xla=False), "fit, XLA": case.fit(xla=True)}
        sides = {"ours": case.ours()[0], **peers}
        times = take_turns(sides, flags.FLAGS.rounds)
        about = {"network": case.model, "batch": case.batch_size, "pixels": case.size}
        rows += [{**about, **compare(times, peer, case.steps)} for peer in peers]
    write_results("step", rows)


if __name__ == "__main__":
    from keras_resnet import programs

    flags.DEFINE_integer("rounds", 5, "Turns of each side, of several steps each.", 1)
    programs.run(main)
