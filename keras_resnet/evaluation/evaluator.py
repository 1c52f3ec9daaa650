"""What a model says of each image of a split, each counted exactly once."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import (
    PAPER_SCALES,
    central_crop,
    check_batch_size,
    evaluation_batches,
    refuse_damaged,
)
from keras_resnet.distribution import local_replicas, next_batch
from keras_resnet.nets import channel_axis, has_imagenet_stem
from keras_resnet.support import InputError, choose

VIEWS = ("single", "10crop", "multiscale")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of each image.

    Attributes:
        labels: the right class, int32 (n,).
        classes: the likeliest classes, best first, int32 (n, k); k is 5, or the
            number of classes if that is less.
        scores: their probabilities, float32 (n, k).
        losses: cross-entropy, float32 (n,).
    """

    labels: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    losses: np.ndarray

    def summary(self):
        """Returns the loss and the accuracies over all images.

        Returns:
            A dict of `"loss"` (mean cross-entropy), `"accuracy"`,
            `"top5_accuracy"` (shares from 0 to 1) and `"images"` (their number).
        """
        hits = self.classes == self.labels[:, None]
        return {
            "loss": float(self.losses.mean(dtype=np.float64)),
            "accuracy": float(hits[:, 0].mean()),
            "top5_accuracy": float(hits.any(axis=1).mean()),
            "images": len(self.labels),
        }

    def confusion(self, classes):
        """Counts each pair of right and named class.

        Args:
            classes: their number.

        Returns:
            int64 (classes, classes), a row for each right class.
        """
        pairs = self.labels.astype(np.int64) * classes + self.classes[:, 0]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


class Evaluator:
    """Evaluates a model, as often as it is called.

    Exact for any batch size and any number of replicas: a last, partial batch
    is filled up with the first images again, which then count as nothing.

    The views of the paper (section 4.1, Tables 3 to 5):

    - `"single"`: the central crop.
    - `"10crop"`: the softmax averaged over `Preprocessing.ten_crops`.
    - `"multiscale"`: the whole image, not square, with its shorter side at 224,
      256, 384, 480 and 640 pixels: fully convolutional, the dense layer on the
      global average of the final map; softmax averaged over the scales and over
      the image and its mirror. The paper says "scores" and "averaged" without
      saying where; averaging the logits, or the final maps of the two mirror
      images as in its reference [41], would be other readings. It does not state
      the interpolation either: here it is the weights' own.

    Args:
        model: classifier that gives probabilities (batch, classes).
        split: a `keras_resnet.data.Split`.
        preprocessing: from its images to the model's input.
        batch_size: images in a step, over all replicas of this process; with `"10crop"` as many
            crops, and with `"multiscale"` one image for each replica.
        strategy: in whose scope the model was made.
        views: one of `VIEWS`.

    Raises:
        InputError: the replicas don't divide the batch, or the views are not for
            this network.
    """

    def __init__(
        self, model, split, preprocessing, batch_size, strategy, views="single"
    ):
        replicas = len(local_replicas(strategy))
        choose("views", views, VIEWS)
        check_batch_size(batch_size, replicas)
        stem = has_imagenet_stem({layer.name for layer in model.layers})
        if views != "single" and not stem:
            raise InputError(
                "10crop and multiscale are for ImageNet nets; a CIFAR net sees the whole "
                f"image. Received: views={views!r} with {model.name}"
            )
        self._split, self._preprocessing = split, preprocessing
        self._strategy = strategy
        self._refresh = lambda: None
        cut, classify = central_crop(preprocessing), model
        if views == "10crop":
            cut, classify = _ten_crops(model, preprocessing)
            batch_size = max(1, batch_size // 10 // replicas) * replicas
        elif views == "multiscale":
            with strategy.scope():
                cut, classify, refresh = _multiscale(model, preprocessing)
            self._refresh = refresh
            batch_size = replicas
        self._batches = evaluation_batches(split, cut, batch_size, replicas)
        self.steps = -(-len(split) // batch_size)
        top = min(5, model.output_shape[-1])

        def replica_step(images, labels, weights):
            del weights  # The images that fill the last batch are its last.
            probabilities = classify(images, training=False)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            # Not Keras's top-k metric, for which every class of a tie is in.
            best = tf.math.top_k(probabilities, top)
            return best.indices, best.values, losses

        @tf.function(reduce_retracing=True)
        def step(batches):
            return strategy.run(replica_step, args=next_batch(strategy, batches))

        self._step = step

    def predict(self, on_step=lambda: None):
        """Says what the model, as it is now, makes of each image.

        Args:
            on_step: called after each of `steps` steps.

        Returns:
            `Predictions`, in the order of the split.

        Raises:
            InputError: images cannot be decoded; it names them.
        """
        self._refresh()
        parts = []
        try:
            batches = iter(self._batches)
            for _ in range(self.steps):
                found = self._step(batches)
                found = [self._strategy.experimental_local_results(f) for f in found]
                parts += zip(*found, strict=True)
                on_step()
        except tf.errors.OpError:
            refuse_damaged(self._split, self._preprocessing)
            raise
        count = len(self._split)
        classes, scores, losses = (
            np.concatenate([np.asarray(each) for each in column])[:count]
            for column in zip(*parts, strict=True)
        )
        return Predictions(self._split.labels, classes, scores, losses)

    def __call__(self):
        """Returns `Predictions.summary()` of the model as it is now."""
        return self.predict().summary()


def _ten_crops(model, preprocessing):
    def classify(crops, training):
        flat = tf.reshape(crops, (-1, *preprocessing.shape))
        probabilities = model(flat, training=training)
        return tf.reduce_mean(
            tf.reshape(probabilities, (-1, 10, probabilities.shape[-1])), axis=1
        )

    return (
        lambda encoded: preprocessing.ten_crops(preprocessing.decode(encoded, False)),
        preprocessing.ten_crops,
        tf.TensorSpec((10, *preprocessing.shape), tf.uint8),
    ), classify


def _multiscale(model, preprocessing):
    if channel_axis() == 1:
        raise InputError("multiscale needs Keras's image_data_format 'channels_last'")
    any_size = keras.Input((None, None, preprocessing.channels), name="image")
    whole = keras.models.clone_model(model, input_tensors=any_size)

    def scales(image):
        return tuple(preprocessing.whole_at(image, side) for side in PAPER_SCALES)

    def classify(images, training):
        found = [
            whole(tf.concat([image, image[:, :, ::-1]], 0), training=training)
            for image in images
        ]
        return tf.reduce_mean(tf.concat(found, 0), axis=0, keepdims=True)

    spec = tf.TensorSpec((None, None, preprocessing.channels), tf.uint8)
    return (
        (
            lambda encoded: scales(preprocessing.decode(encoded, False)),
            scales,
            (spec,) * len(PAPER_SCALES),
        ),
        classify,
        lambda: whole.set_weights(model.get_weights()),
    )
