"""Networks and training data of the benchmarks `step` and `checkpoint`."""

from typing import NamedTuple


class Case(NamedTuple):
    """A network, and a batch of noise on which the network is trained repeatedly."""

    model: str  # Name of the variant.
    recipe: str  # Name of the recipe.
    batch_size: int
    size: int  # Height and width of the images in pixels.
    num_classes: int  # Number of classes.

    def to_columns(self):
        """Returns the columns of a result row that describe the case."""
        return {"network": self.model, "batch": self.batch_size, "pixels": self.size}

    def find_recipe(self):
        """Returns the recipe with a lower learning rate, which is stable on noise."""
        from keras_resnet.spec import find_recipe

        return find_recipe(self.recipe, learning_rate=1e-3)

    def make_batch(self):
        """Returns noise as uint8 images, and int32 labels."""
        import tensorflow as tf

        shape = (self.batch_size, self.size, self.size, 3)
        images = tf.random.stateless_uniform(shape, (0, 0), 0, 256, tf.int32)
        return tf.cast(images, tf.uint8), tf.range(self.batch_size) % self.num_classes

    def build_network(self):
        """Returns the network that a training run of this case would build."""
        from keras_resnet.data import Dataset, Split
        from keras_resnet.spec import Execution, RunOptions
        from keras_resnet.training.network import make_network
        from keras_resnet.training.resolution import resolve_run

        noise = Split(*(array.numpy() for array in self.make_batch()))
        classes = tuple(map(str, range(self.num_classes)))
        data = Dataset("noise", classes, noise, noise, (self.size, self.size, 3))
        options = RunOptions.from_keywords(self.model, data, batch_size=self.batch_size)
        spec, data, preprocessing = resolve_run(options, Execution(), 1)
        return make_network(spec, data, preprocessing, None)[0]

    def prepare_training(self, precision="float32"):
        """Returns (function that makes a training step, network, `Step`)."""
        import tensorflow as tf

        from keras_resnet.distribution import make_strategy
        from keras_resnet.spec import Execution
        from keras_resnet.training.step import Step

        strategy = make_strategy("mirrored")
        with strategy.scope():
            network = self.build_network()
        execution = Execution(precision=precision)
        step = Step(network, strategy, self.find_recipe(), 1000, execution)
        network.optimizer = step.optimizer
        weights = tf.fill([self.batch_size], 1 / self.batch_size)
        tensors = (*self.make_batch(), weights)
        batches = iter(tf.data.Dataset.from_tensors(tensors).repeat())
        return lambda: step(batches), network, step


CASES = (
    Case("resnet20", "paper_cifar", 128, 32, 10),
    Case("resnet50", "photographs", 8, 224, 1000),
)
