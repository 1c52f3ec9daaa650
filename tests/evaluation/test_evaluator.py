"""Evaluation, against NumPy and Pillow over one image at a time."""

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
from keras_resnet.evaluation.views import VIEWS
from keras_resnet.support.errors import InputError


@pytest.mark.parametrize("name", ["one_device", "mirrored"])
@pytest.mark.parametrize("batch_size", [14, 128, 360])
def test_equals_numpy_over_one_batch(name, batch_size):
    digits = sources.load_dataset("digits")
    split = splits.Split(digits.test.images[:333], digits.test.labels[:333])
    strategy = strategies.make_strategy(name)
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    found = Evaluator(model, split, Preprocessing(8, 8, 1), batch_size, strategy)()

    probabilities = np.float64(model(split.images, training=False))
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == split.labels[:, None]
    # The loss from logits in float64; the untrained bias is 0.
    features = keras.Model(model.input, model.get_layer("avg_pool").output)(
        split.images
    )
    logits = np.float64(features) @ np.float64(
        model.get_layer("predictions").get_weights()[0]
    )
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(333), split.labels]
    assert found["images"] == 333
    assert found["accuracy"] == pytest.approx(hits[:, 0].mean(), abs=1e-12)
    assert found["top5_accuracy"] == pytest.approx(
        hits[:, :5].any(axis=1).mean(), abs=1e-12
    )
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_again_after_the_weights_changed():
    digits = sources.load_dataset("digits")
    strategy = strategies.make_strategy("one_device")
    with strategy.scope():
        model = keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    evaluate = Evaluator(model, digits.test, Preprocessing(8, 8, 1), 64, strategy)
    before = evaluate()
    assert evaluate() == before
    head = model.get_layer("predictions")
    head.set_weights([np.zeros((64, 10)), np.eye(10)[3]])
    after = evaluate()
    assert after["accuracy"] == (digits.test.labels == 3).mean()
    # Softmax of one 1 and nine 0.
    other = np.log(np.e + 9)
    expected = other - (digits.test.labels == 3).mean()
    assert after["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_batch_that_the_replicas_do_not_divide():
    digits = sources.load_dataset("digits")
    strategy = strategies.make_strategy("mirrored")
    with pytest.raises(InputError, match="Received: batch_size=15"):
        Evaluator(None, digits.test, Preprocessing(8, 8, 1), 15, strategy)


@pytest.fixture(scope="module")
def digits():
    digits = sources.load_dataset("digits")
    return digits.train + digits.test


def randomised(name, input_shape, **options):
    """A net whose outputs differ by image, as if it had been trained."""
    keras.utils.set_random_seed(7)
    random = np.random.default_rng(7)
    model = keras_resnet.ResNet(name, input_shape=input_shape, **options)
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
    first = model.get_layer("conv1_conv")  # The images are from 0 to 255.
    first.set_weights([first.get_weights()[0] / 128])
    head = model.get_layer("predictions")  # Not so sure of itself.
    kernel, bias = head.get_weights()
    head.set_weights([kernel / 4, random.normal(0, 0.05, bias.shape)])
    return model


def assert_same_predictions(found, expected):
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    found, expected = found.summary(), expected.summary()
    for name in ("accuracy", "top5_accuracy", "images"):
        assert found[name] == expected[name]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)


def test_batches_and_replicas_change_nothing(digits):
    """999 images, 14 at a time on two replicas, and all at once on one device."""
    split = digits.take(slice(0, 999))
    preprocessing = Preprocessing(8, 8, 1)
    found = []
    for name, batch_size in (("mirrored", 14), ("one_device", 999)):
        strategy = strategies.make_strategy(name)
        with strategy.scope():
            model = randomised("cifar_resnet8", (8, 8, 1))
        # Without a bias towards any class.
        features = keras.Model(model.input, model.get_layer("avg_pool").output)
        kernel = model.get_layer("predictions").get_weights()[0]
        common = np.asarray(features(split.images)).mean(axis=0)
        model.get_layer("predictions").set_weights([4 * kernel, -4 * common @ kernel])
        evaluator = Evaluator(model, split, preprocessing, batch_size, strategy)
        steps = []
        found.append(evaluator.predict(lambda steps=steps: steps.append(1)))
        assert len(steps) == evaluator.steps == -(-999 // batch_size)
    assert np.bincount(found[0].classes[:, 0], minlength=10).max() < 500
    assert found[0].summary()["images"] == 999
    np.testing.assert_array_equal(found[0].labels, split.labels)
    assert_same_predictions(*found)
    expected = np.asarray(model(split.images, training=False)).argmax(axis=1)
    np.testing.assert_array_equal(found[0].classes[:, 0], expected)
    assert found[0].summary()["accuracy"] == (expected == split.labels).mean()


def encoded(pictures, labels=None):
    """A split of PNG files, or of pixels where all have one size."""
    labels = np.arange(len(pictures)) % 7 if labels is None else labels
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        files.append(file.getvalue())
    return splits.Split(np.array(files, object), np.int32(labels))


def pictures(*sides):
    """Smooth ones, on which one level of rounding is all that resampling differs."""
    random = np.random.default_rng(5)
    found = []
    for height, width in sides:
        y, x = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
        waves = [
            np.sin(random.uniform(1, 5) * x + random.uniform(1, 5) * y + phase)
            for phase in random.uniform(0, 6, 3)
        ]
        levels = random.uniform(60, 125, 3) * np.stack(waves, -1) + 127
        found.append(np.uint8(np.clip(levels, 0, 255)))
    return found


SIDES = ((60, 80), (90, 56), (40, 41), (128, 50), (45, 45))


def photographic(strategy, side=32):
    """A net with ImageNet's stem for seven classes, the same each time."""
    with strategy.scope():
        return randomised("resnet18", (side, side, 3), classes=7)


def resize(picture, shorter):
    height, width = picture.shape[:2]
    short = min(height, width)
    size = shorter * width // short, shorter * height // short
    image = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def slow_ten_crops(model, picture):
    side = model.input_shape[1]
    picture = resize(picture, round(side / 0.875))
    large = min(picture.shape[:2])
    top, left = (round((n - large) / 2) for n in picture.shape[:2])
    square = picture[top : top + large, left : left + large]
    edge = large - side
    middle = round(edge / 2)
    crops = []
    for y, x in ((0, 0), (0, edge), (edge, 0), (edge, edge), (middle, middle)):
        crop = square[y : y + side, x : x + side]
        crops += [crop, crop[:, ::-1]]
    return np.float64(model(np.stack(crops), training=False)).mean(axis=0)


def slow_multiscale(model, maps, picture, scales):
    *weights, kernel, bias = model.get_weights()
    maps.set_weights(weights)
    found = []
    for shorter in scales:
        image = resize(picture, shorter)
        for each in (image, image[:, ::-1]):
            final = np.float64(maps(each[None], training=False))[0]
            found.append(softmax(final.mean(axis=(0, 1)) @ kernel + bias))
    return np.mean(found, axis=0)


def assert_predicts(found, split, expected, level):
    """Predictions equal probabilities but for what one level of rounding changes."""
    assert level < 0.01
    # The images are told apart by far more than that.
    assert expected.std(axis=0).max() > 5 * level
    np.testing.assert_array_equal(found.labels, split.labels)
    assert found.classes.shape == (len(split), 5)
    best = -np.sort(-expected, axis=1)[:, :5]
    named = np.take_along_axis(expected, found.classes, axis=1)
    np.testing.assert_allclose(found.scores, best, rtol=0, atol=level)
    np.testing.assert_allclose(found.scores, named, rtol=0, atol=level)
    right = expected[np.arange(len(split)), split.labels]
    np.testing.assert_allclose(np.exp(-found.losses), right, rtol=0, atol=level)


def one_level(slow, pictures):
    """What it changes if every pixel is a level higher."""
    higher = [np.minimum(picture, 254) + np.uint8(1) for picture in pictures]
    return np.abs(np.stack(list(map(slow, higher))) - list(map(slow, pictures))).max()


# 56 is 7/8 of 64; 32 of 36.57, which becomes 37.
@pytest.mark.parametrize("side", [56, 32])
def test_ten_crops_equal_slow_ones(side):
    strategy = strategies.make_strategy("one_device")
    model = photographic(strategy, side)
    images = pictures(*SIDES)
    split = encoded(images)
    preprocessing = Preprocessing(side, side, 3, 0.875)
    found = Evaluator(model, split, preprocessing, 20, strategy, "10crop").predict()
    expected = np.stack([slow_ten_crops(model, image) for image in images])
    level = one_level(lambda image: slow_ten_crops(model, image), images)
    assert_predicts(found, split, expected, level)


@pytest.mark.parametrize("sides", [(45, 60), (64, 64)])
def test_ten_crops_of_pixels(sides):
    """A data set of images of one size; also that of the square."""
    strategy = strategies.make_strategy("one_device")
    model = photographic(strategy, 56)
    images = pictures(*[sides] * 4)
    split = splits.Split(np.stack(images), np.arange(4, dtype=np.int32))
    preprocessing = Preprocessing(56, 56, 3, 0.875)
    found = Evaluator(model, split, preprocessing, 30, strategy, "10crop").predict()
    expected = np.stack([slow_ten_crops(model, image) for image in images])
    level = one_level(lambda image: slow_ten_crops(model, image), images)
    if sides == (64, 64):
        level = 1e-5  # Nothing is resized.
    assert_predicts(found, split, expected, level)


@pytest.fixture
def small_scales(monkeypatch):
    scales = (32, 48, 64)
    monkeypatch.setattr(views_module, "PAPER_SCALES", scales)
    return scales


def test_multiscale_equals_a_slow_one(small_scales):
    """The convolutions' last map of the whole image, then the dense layer by hand.

    Three images on two replicas.
    """
    strategy = strategies.make_strategy("mirrored")
    model = photographic(strategy)
    images = pictures(*SIDES[:3])
    split = encoded(images)
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    found = Evaluator(model, split, preprocessing, 8, strategy, "multiscale").predict()

    maps = keras_resnet.ResNet("resnet18", False, input_shape=(None, None, 3))

    def slow(image):
        return slow_multiscale(model, maps, image, small_scales)

    expected = np.stack([slow(image) for image in images])
    assert_predicts(found, split, expected, one_level(slow, images))


def test_ten_crops_on_two_replicas():
    """Eleven images, of which a step takes one for each replica."""
    split = encoded(pictures(*(SIDES * 3)[:11]))
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    found = []
    for name, batch_size, steps in (("mirrored", 4, 6), ("one_device", 110, 1)):
        strategy = strategies.make_strategy(name)
        model = photographic(strategy)
        evaluator = Evaluator(
            model, split, preprocessing, batch_size, strategy, "10crop"
        )
        assert evaluator.steps == steps
        found.append(evaluator.predict())
    assert_same_predictions(*found)


@pytest.mark.parametrize("views", VIEWS)
def test_each_view_is_of_the_model_as_it_is_now(small_scales, views):
    strategy = strategies.make_strategy("one_device")
    model = photographic(strategy)
    split = encoded(pictures((40, 50), (50, 40)))
    evaluate = Evaluator(
        model, split, Preprocessing(32, 32, 3, 0.875), 20, strategy, views
    )
    evaluate()
    model.get_layer("predictions").set_weights([np.zeros((512, 7)), np.eye(7)[3]])
    found = evaluate.predict()
    assert found.classes[:, 0].tolist() == [3, 3]
    # Softmax of one 1 and six 0.
    np.testing.assert_allclose(found.scores[:, 0], np.e / (np.e + 6), rtol=1e-6)


def test_pixels_and_files_are_seen_alike():
    """Also images that happen to have the input's size: they are cropped, too."""
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    for sides in ((32, 32), (37, 37), (40, 50)):
        images = pictures(sides, sides)
        split = encoded(images)
        pixels = splits.Split(np.stack(images), split.labels)
        views = [pipelines.load_views(each, preprocessing) for each in (pixels, split)]
        np.testing.assert_array_equal(*views)


@pytest.mark.parametrize("views", ["10crop", "multiscale"])
def test_cifar_nets_see_the_whole_image(digits, views):
    strategy = strategies.make_strategy("one_device")
    model = keras_resnet.ResNet("cifar_resnet8", input_shape=(8, 8, 1))
    with pytest.raises(InputError, match=f"Received: views='{views}' with cifar_res"):
        Evaluator(model, digits, Preprocessing(8, 8, 1), 20, strategy, views)


@pytest.mark.parametrize(
    ("views", "nearest"), [("10crops", "10crop"), ("multi-scale", "multiscale")]
)
def test_unknown_views(digits, views, nearest):
    strategy = strategies.make_strategy("one_device")
    with pytest.raises(InputError, match=f"Did you mean '{nearest}'.*'{views}'") as e:
        Evaluator(None, digits, Preprocessing(8, 8, 1), 20, strategy, views)
    assert "Accepted: single, 10crop, multiscale." in str(e.value)


@pytest.mark.parametrize("views", VIEWS)
def test_damaged_images_are_named(small_scales, tmp_path, views):
    strategy = strategies.make_strategy("one_device")
    model = photographic(strategy)
    split = encoded(pictures(*SIDES))
    split.images[1] = split.images[1][:100]
    split.images[4] = b"Not a picture"
    names = "number 1, number 4"
    if views == "10crop":
        paths = [tmp_path / f"{i}.png" for i in range(5)]
        for path, file in zip(paths, split.images, strict=True):
            path.write_bytes(file)
        split = splits.Split(
            np.array(list(map(str, paths)), object), split.labels, True
        )
        names = f"{paths[1]}, {paths[4]}"
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    with pytest.raises(InputError, match="2 of 5 images") as error:
        Evaluator(model, split, preprocessing, 20, strategy, views)()
    assert str(error.value).endswith(f": {names}")


def test_summary_and_confusion_by_hand():
    found = Predictions(
        np.int32([2, 0, 1, 2]),
        np.int32([[2, 0], [1, 0], [0, 2], [2, 1]]),
        np.float32([[0.9, 0.1], [0.6, 0.4], [0.5, 0.3], [0.8, 0.1]]),
        np.float32([0.1, 0.9, 1.6, 0.2]),
    )
    assert found.summary() == {
        "loss": pytest.approx(0.7, rel=1e-6),
        "accuracy": 0.5,
        "top5_accuracy": 0.75,
        "images": 4,
    }
    np.testing.assert_array_equal(found.confusion(3), [[0, 1, 0], [1, 0, 0], [0, 0, 2]])
