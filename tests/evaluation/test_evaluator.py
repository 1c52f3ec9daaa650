"""The evaluator and its views, compared with slow implementations in NumPy."""

import functools
import io

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnet
from keras_resnet.data import pipelines, sources, splits
from keras_resnet.data.preprocessing import Preprocessing
from keras_resnet.distribution import strategies
from keras_resnet.evaluation import views as views_module
from keras_resnet.evaluation.evaluator import Evaluator, Predictions
from keras_resnet.support.errors import InputError


def make_randomised_model(variant, input_shape, **options):
    """Returns a network with random weights, whose predictions depend on the image."""
    keras.utils.set_random_seed(7)
    random = np.random.default_rng(7)
    model = keras_resnet.ResNet(variant, input_shape=input_shape, **options)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [
                    random.uniform(0.7, 1.3, shape),
                    random.normal(0, 0.3, shape),
                    random.normal(0, 0.3, shape),
                    random.uniform(0.7, 1.3, shape),
                ]
            )
    # Division by 128 avoids very large activations for pixels from 0 to 255.
    stem = model.get_layer("conv1_conv")
    stem.set_weights([stem.get_weights()[0] / 128])
    # Division by 4 avoids probabilities close to 0 and 1.
    head = model.get_layer("predictions")
    kernel, bias = head.get_weights()
    head.set_weights([kernel / 4, random.normal(0, 0.05, bias.shape)])
    return model


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("strategy_name", "batch_size"), [("one_device", 360), ("mirrored", 14)]
)
def test_predictions_equal_numpy(strategy_name, batch_size):
    """The last batch is incomplete, so it is padded."""
    split = sources.load_dataset("digits").test.take(slice(0, 333))
    strategy = strategies.make_strategy(strategy_name)
    with strategy.scope():
        model = make_randomised_model("cifar_resnet8", (8, 8, 1))
    features = np.float64(
        keras.Model(model.input, model.get_layer("avg_pool").output)(split.images)
    )
    head = model.get_layer("predictions")
    # This bias centres the features, so that no class dominates the predictions.
    kernel = 4 * head.get_weights()[0]
    bias = -features.mean(axis=0) @ kernel
    head.set_weights([kernel, bias])
    evaluator = Evaluator(model, split, Preprocessing(8, 8, 1), batch_size, strategy)
    calls = []
    predictions = evaluator.predict(lambda: calls.append(1))
    assert len(calls) == evaluator.steps == -(-333 // batch_size)

    probabilities = softmax(features @ np.float64(kernel) + np.float32(bias))
    ranking = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    assert np.bincount(ranking[:, 0], minlength=10).max() < 170
    scores = np.take_along_axis(probabilities, ranking, axis=1)
    losses = -np.log(probabilities[np.arange(333), split.labels])
    np.testing.assert_array_equal(predictions.labels, split.labels)
    np.testing.assert_array_equal(predictions.classes, ranking)
    np.testing.assert_allclose(predictions.scores, scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predictions.losses, losses, rtol=1e-4, atol=1e-5)
    hits = ranking == split.labels[:, None]
    summary = predictions.summarise()
    assert summary["images"] == 333
    assert summary["accuracy"] == pytest.approx(hits[:, 0].mean(), abs=1e-12)
    assert summary["top5_accuracy"] == pytest.approx(hits.any(axis=1).mean(), abs=1e-12)
    assert summary["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_evaluation_uses_the_current_weights():
    digits = sources.load_dataset("digits")
    strategy = strategies.make_strategy("one_device")
    with strategy.scope():
        model = keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    evaluator = Evaluator(model, digits.test, Preprocessing(8, 8, 1), 64, strategy)
    first_summary = evaluator()
    assert evaluator() == first_summary
    head = model.get_layer("predictions")
    head.set_weights([np.zeros((64, 10)), np.eye(10)[3]])
    second_summary = evaluator()
    assert second_summary["accuracy"] == (digits.test.labels == 3).mean()
    # The logit of class 3 is 1, and the other nine logits are 0.
    log_sum = np.log(np.e + 9)
    expected = log_sum - (digits.test.labels == 3).mean()
    assert second_summary["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_batch_size_that_replicas_cannot_share_is_refused():
    digits = sources.load_dataset("digits")
    strategy = strategies.make_strategy("mirrored")
    with pytest.raises(InputError, match="Received: batch_size=15"):
        Evaluator(None, digits.test, Preprocessing(8, 8, 1), 15, strategy)


@pytest.fixture(scope="module")
def all_digits():
    """A split with the training images and the test images of digits."""
    digits = sources.load_dataset("digits")
    return digits.train + digits.test


def make_encoded_split(images, labels=None):
    """Returns a split whose images are PNG-encoded bytes."""
    labels = np.arange(len(images)) % 7 if labels is None else labels
    encoded_images = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded_images.append(buffer.getvalue())
    return splits.Split(np.array(encoded_images, object), np.int32(labels))


def make_images(*sizes):
    """Returns a smooth RGB image for each size (height, width).

    For smooth images, Pillow's and TensorFlow's resized pixels differ by at most 1.
    """
    random = np.random.default_rng(5)
    images = []
    for height, width in sizes:
        y, x = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
        waves = [
            np.sin(random.uniform(1, 5) * x + random.uniform(1, 5) * y + phase)
            for phase in random.uniform(0, 6, 3)
        ]
        pixels = random.uniform(60, 125, 3) * np.stack(waves, -1) + 127
        images.append(np.uint8(np.clip(pixels, 0, 255)))
    return images


SIZES = ((60, 80), (90, 56), (40, 41), (128, 50), (45, 45))


# A network with the stem of ImageNet networks, but with only two blocks.
SMALL_NETWORK = {"variant": "resnet18", "blocks": (1, 1), "width": 16}


def make_imagenet_model(strategy, input_size=32):
    """Returns an ImageNet network for seven classes with reproducible weights."""
    input_shape = (input_size, input_size, 3)
    with strategy.scope():
        return make_randomised_model(
            **SMALL_NETWORK, input_shape=input_shape, classes=7
        )


def resize(image, new_shorter_side):
    height, width = image.shape[:2]
    shorter_side = min(height, width)
    new_size = (
        new_shorter_side * width // shorter_side,
        new_shorter_side * height // shorter_side,
    )
    resized_image = Image.fromarray(image).resize(new_size, Image.Resampling.BILINEAR)
    return np.asarray(resized_image)


def predict_ten_crops(model, image):
    input_size = model.input_shape[1]
    image = resize(image, round(input_size / 0.875))
    square_size = min(image.shape[:2])
    top, left = (round((n - square_size) / 2) for n in image.shape[:2])
    square = image[top : top + square_size, left : left + square_size]
    max_offset = square_size - input_size
    centre_offset = round(max_offset / 2)
    crops = []
    for y, x in (
        (0, 0),
        (0, max_offset),
        (max_offset, 0),
        (max_offset, max_offset),
        (centre_offset, centre_offset),
    ):
        crop = square[y : y + input_size, x : x + input_size]
        crops += [crop, crop[:, ::-1]]
    return np.float64(model(np.stack(crops), training=False)).mean(axis=0)


def predict_multiscale(model, feature_model, image, scales):
    *weights, kernel, bias = model.get_weights()
    feature_model.set_weights(weights)
    probabilities = []
    for scale in scales:
        resized_image = resize(image, scale)
        for view in (resized_image, resized_image[:, ::-1]):
            feature_map = np.float64(feature_model(view[None], training=False))[0]
            probabilities.append(softmax(feature_map.mean(axis=(0, 1)) @ kernel + bias))
    return np.mean(probabilities, axis=0)


def assert_predictions_near(predictions, split, expected, tolerance):
    """Checks predictions against expected probabilities of all classes.

    Args:
        predictions: Predictions to check.
        split: Images and labels.
        expected: Expected probabilities, (images, classes).
        tolerance: Largest accepted difference of a predicted from an expected
            probability.
    """
    assert tolerance < 0.01
    # If all images had similar probabilities, wrong predictions would pass the test.
    assert expected.std(axis=0).max() > 5 * tolerance
    np.testing.assert_array_equal(predictions.labels, split.labels)
    assert predictions.classes.shape == (len(split), 5)
    expected_scores = -np.sort(-expected, axis=1)[:, :5]
    scores_of_classes = np.take_along_axis(expected, predictions.classes, axis=1)
    np.testing.assert_allclose(
        predictions.scores, expected_scores, rtol=0, atol=tolerance
    )
    np.testing.assert_allclose(
        predictions.scores, scores_of_classes, rtol=0, atol=tolerance
    )
    correct_scores = expected[np.arange(len(split)), split.labels]
    np.testing.assert_allclose(
        np.exp(-predictions.losses), correct_scores, rtol=0, atol=tolerance
    )


def measure_rounding_tolerance(predict, images):
    """Returns the largest change of a probability if every pixel value grows by 1."""
    brighter_images = [np.minimum(image, 254) + np.uint8(1) for image in images]
    return np.abs(
        np.stack(list(map(predict, brighter_images))) - list(map(predict, images))
    ).max()


def assert_uses_current_weights(evaluator, model):
    """Changes the head of a network that an evaluator has used, and predicts again."""
    model.get_layer("predictions").set_weights([np.zeros((32, 7)), np.eye(7)[3]])
    predictions = evaluator.predict()
    assert set(predictions.classes[:, 0]) == {3}
    # The logit of class 3 is 1, and the other six logits are 0.
    np.testing.assert_allclose(predictions.scores[:, 0], np.e / (np.e + 6), rtol=1e-6)


def test_ten_crops_equal_a_slow_implementation():
    """The shorter side is resized to 32 / 0.875 = 37 pixels (rounded)."""
    strategy = strategies.make_strategy("one_device")
    model = make_imagenet_model(strategy)
    images = make_images(*SIZES)
    split = make_encoded_split(images)
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    evaluator = Evaluator(model, split, preprocessing, 20, strategy, "10crop")
    assert evaluator.steps == 3  # Each step has 20 crops of two images.
    predict = functools.partial(predict_ten_crops, model)
    expected = np.stack([predict(image) for image in images])
    tolerance = measure_rounding_tolerance(predict, images)
    assert_predictions_near(evaluator.predict(), split, expected, tolerance)
    assert_uses_current_weights(evaluator, model)


def test_ten_crops_of_decoded_images_equal_a_slow_implementation():
    """Crops of 64x64 images have 7/8 of 64 pixels, so no pixel is rounded.

    Each of the two replicas takes one image per step. The last step is padded.
    """
    strategy = strategies.make_strategy("mirrored")
    model = make_imagenet_model(strategy, 56)
    images = make_images(*[(64, 64)] * 5)
    split = splits.Split(np.stack(images), np.arange(5, dtype=np.int32))
    preprocessing = Preprocessing(56, 56, 3, 0.875)
    evaluator = Evaluator(model, split, preprocessing, 20, strategy, "10crop")
    assert evaluator.steps == 3
    expected = np.stack([predict_ten_crops(model, image) for image in images])
    assert_predictions_near(evaluator.predict(), split, expected, 1e-5)


@pytest.fixture
def small_scales(monkeypatch):
    """Scales (pixels of the shorter side) smaller than the paper's, to save time."""
    scales = (32, 48, 64)
    monkeypatch.setattr(views_module, "PAPER_SCALES", scales)
    return scales


def test_multiscale_equals_a_slow_implementation(small_scales):
    """The slow implementation pools and applies the dense layer in NumPy."""
    strategy = strategies.make_strategy("mirrored")
    model = make_imagenet_model(strategy)
    images = make_images(*SIZES[:3])
    split = make_encoded_split(images)
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    evaluator = Evaluator(model, split, preprocessing, 8, strategy, "multiscale")
    predictions = evaluator.predict()

    feature_model = keras_resnet.ResNet(
        **SMALL_NETWORK, include_top=False, input_shape=(None, None, 3)
    )

    def predict_slowly(image):
        return predict_multiscale(model, feature_model, image, small_scales)

    expected = np.stack([predict_slowly(image) for image in images])
    assert_predictions_near(
        predictions, split, expected, measure_rounding_tolerance(predict_slowly, images)
    )
    assert_uses_current_weights(evaluator, model)


def test_decoded_images_and_files_get_the_same_crops():
    """Images of the input size, 32x32, are resized and cropped like other images."""
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    for size in ((32, 32), (37, 37), (40, 50)):
        images = make_images(size, size)
        split = make_encoded_split(images)
        decoded_split = splits.Split(np.stack(images), split.labels)
        crops = [
            pipelines.load_views(image_split, preprocessing)
            for image_split in (decoded_split, split)
        ]
        np.testing.assert_array_equal(*crops)


@pytest.mark.parametrize("views", ["10crop", "multiscale"])
def test_cifar_networks_support_only_single_views(all_digits, views):
    strategy = strategies.make_strategy("one_device")
    model = keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    with pytest.raises(InputError, match=f"Received: views='{views}' with cifar_res"):
        Evaluator(model, all_digits, Preprocessing(8, 8, 1), 20, strategy, views)


@pytest.mark.parametrize(
    ("views", "suggestion"), [("10crops", "10crop"), ("multi-scale", "multiscale")]
)
def test_unknown_views_are_refused(all_digits, views, suggestion):
    strategy = strategies.make_strategy("one_device")
    with pytest.raises(
        InputError, match=f"Did you mean '{suggestion}'.*'{views}'"
    ) as error:
        Evaluator(None, all_digits, Preprocessing(8, 8, 1), 20, strategy, views)
    assert "Accepted: single, 10crop, multiscale." in str(error.value)


@pytest.mark.parametrize("views", ["single", "10crop", "multiscale"])
def test_damaged_images_are_listed(small_scales, tmp_path, views):
    strategy = strategies.make_strategy("one_device")
    model = make_imagenet_model(strategy)
    split = make_encoded_split(make_images(*SIZES))
    split.images[1] = split.images[1][:100]
    split.images[4] = b"Not an image"
    damaged_names = "number 1, number 4"
    if views == "single":
        paths = [tmp_path / f"{i}.png" for i in range(5)]
        for path, content in zip(paths, split.images, strict=True):
            path.write_bytes(content)
        split = splits.Split(
            np.array(list(map(str, paths)), object), split.labels, True
        )
        damaged_names = f"{paths[1]}, {paths[4]}"
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    with pytest.raises(InputError, match="2 of 5 images") as error:
        Evaluator(model, split, preprocessing, 20, strategy, views)()
    assert str(error.value).endswith(f": {damaged_names}")


def test_summary_and_confusion_matrix_equal_values_by_hand():
    predictions = Predictions(
        np.int32([2, 0, 1, 2]),
        np.int32([[2, 0], [1, 0], [0, 2], [2, 1]]),
        np.float32([[0.9, 0.1], [0.6, 0.4], [0.5, 0.3], [0.8, 0.1]]),
        np.float32([0.1, 0.9, 1.6, 0.2]),
    )
    assert predictions.summarise() == {
        "loss": pytest.approx(0.7, rel=1e-6),
        "accuracy": 0.5,
        "top5_accuracy": 0.75,
        "images": 4,
    }
    np.testing.assert_array_equal(
        predictions.confusion_matrix(3), [[0, 1, 0], [1, 0, 0], [0, 0, 2]]
    )
