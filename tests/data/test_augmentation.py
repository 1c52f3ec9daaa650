"""Augmentation, against Pillow, the sources' formulas by hand and their distributions."""

import functools
import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from keras_resnet.data import policies
from keras_resnet.data.augmentation import (
    erase,
    inception_box,
    mix,
    pca_colour,
    shorter_side_box,
)
from keras_resnet.data.policies import SPACES, rand_augment, trivial_augment
from keras_resnet.support.errors import InputError

FILL = (124, 116, 104)


@functools.cache
def pictures():
    """Photographs in colour and grey, and images that leave little to do."""
    china = load_sample_image("china.jpg")
    colour = china[100:222, 200:361]
    flat, two = np.full((9, 12, 3), 77, np.uint8), np.full((9, 12, 3), 40, np.uint8)
    two[:5] = 90, 40, 255
    return {
        "china": colour,
        "grey": np.asarray(Image.fromarray(colour).convert("L"))[..., None],
        "flat": flat,
        "two colours": two,
        "small": china[200:208, 300:308],
    }


PICTURES = ["china", "grey", "flat", "two colours", "small"]


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def seeds(count, first=0):
    return tf.stack([tf.fill([count], first), tf.range(count)], 1)


def sample(function, count):
    """What a function gives for many seeds: an array (count, ...)."""
    draw = tf.function(
        lambda: tf.map_fn(function, seeds(count), function(seeds(1)[0]).dtype)
    )
    return draw().numpy()


@pytest.fixture
def plan(monkeypatch):
    """Puts numbers in the place of the random ones, those of each call in turn."""

    def put(name, *values):
        calls = iter(values)

        def draw(shape, seed, *_):
            return tf.constant(np.asarray(next(calls)).reshape(shape), tf.float32)

        monkeypatch.setattr(tf.random, name, draw)

    return put


def uniform(values, low, high):
    """Whether values may well be uniform draws from a range."""
    assert min(values) >= low
    assert max(values) <= high
    return scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.001


# Boxes


def random_resized_crop(sides, draws, scale, ratio):
    """torchvision's RandomResizedCrop.get_params, with given numbers from [0, 1)."""
    height, width = sides
    for share, log_aspect, down, across in draws:
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + log_aspect * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("sides", "scale"),
    [
        ((375, 500), (0.08, 1.0)),
        ((500, 333), (0.08, 1.0)),
        ((32, 32), (0.08, 1.0)),
        ((90, 1000), (0.08, 1.0)),  # Often the central part.
        ((1000, 90), (0.35, 1.0)),
        ((3, 2), (0.01, 1.0)),  # Boxes without a pixel are no boxes.
    ],
)
def test_inception_box_equals_torchvisions(plan, sides, scale):
    random = np.random.default_rng(0)
    ratio = (3 / 4, 4 / 3)
    for _ in range(30):
        draws = random.random((10, 4), np.float32)
        plan("stateless_uniform", draws)
        found = inception_box(sides, (0, 0), scale, ratio)
        assert found.dtype == tf.int32
        expected = random_resized_crop(sides, draws.tolist(), scale, ratio)
        assert tuple(found.numpy()) == expected


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((100, 1000), (0, 433, 100, 133)),
        ((1001, 100), (434, 0, 133, 100)),
        ((100, 110), (0, 0, 100, 110)),
    ],
)
def test_inception_box_where_no_try_fits(sides, expected):
    box = inception_box(sides, (1, 2), scale=(1.5, 2.0))
    assert tuple(box.numpy()) == expected


def test_inception_boxes_are_spread_as_they_should_be():
    boxes = sample(lambda s: inception_box((2000, 3000), s, (0.1, 0.25)), 1500)
    y, x, height, width = boxes.T.astype(float)
    share, ratio = height * width / 6e6, np.log(width / height)
    down, across = y / (2000 - height), x / (3000 - width)
    assert uniform(share, 0.1 - 1e-3, 0.25 + 1e-3)
    assert uniform(ratio, math.log(0.749), math.log(1.335))
    assert uniform(down, 0, 1)
    assert uniform(across, 0, 1)
    related = np.corrcoef([share, ratio, down, across])
    assert abs(related[np.triu_indices(4, 1)]).max() < 0.1


@pytest.mark.parametrize("sides", [(375, 500), (500, 333), (31, 1000)])
@pytest.mark.parametrize("size", [(224, 224), (32, 32), (96, 160)])
def test_shorter_side_box_is_a_crop_of_the_resized_image(sides, size):
    boxes = sample(lambda s: shorter_side_box(sides, s, size), 40).astype(float)
    low, high = (round(side * min(size) / 224) for side in (256, 480))
    for box in boxes:
        resized = size / box[2:] * sides
        np.testing.assert_allclose(resized, np.round(resized), atol=2e-3)
        corner = box[:2] / box[2:] * size
        np.testing.assert_allclose(corner, np.round(corner), atol=2e-3)
        assert np.all(np.round(corner) >= 0)
        assert np.all(np.round(corner) + size <= np.round(resized))
        # How far the resized image covers the input, but for a pixel cut off.
        grown = np.round(resized) / size * min(size)
        drawn = round(min(grown))
        assert low <= drawn <= high
        scale = max(
            drawn * side / min(size) / old
            for side, old in zip(size, sides, strict=True)
        )
        assert np.all(np.abs(np.array(sides) * scale - 0.5 - resized) < 0.51)


def test_shorter_sides_are_spread_as_they_should_be():
    boxes = sample(lambda s: shorter_side_box((300, 400), s, (224, 224)), 4000)
    y, x, height, width = boxes.T.astype(float)
    shorter = np.round(224 / height * 300).astype(int)
    assert set(shorter) == set(range(256, 481))
    assert scipy.stats.chisquare(np.bincount(shorter - 256)).pvalue > 0.001
    # The ends of each range have as many images as any other place.
    random = np.random.default_rng(0)
    row = np.round(y / height * 224) + random.random(4000)
    column = np.round(x / width * 224) + random.random(4000)
    assert uniform(row / (shorter - 223), 0, 1)
    assert uniform(column / (np.floor(shorter * 400 / 300) - 223), 0, 1)


def test_shorter_side_below_the_input_is_refused():
    with pytest.raises(
        InputError, match=r"224 or above. Received: shorter=\(200, 480\)"
    ):
        shorter_side_box((300, 400), (0, 0), (224, 224), (200, 480))


def random_erasing(image, draws, fill, scale, ratio):
    """torchvision's RandomErasing, with given numbers from [0, 1)."""
    height, width = image.shape[:2]
    for share, log_aspect, down, across in draws:
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + log_aspect * (high - low))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            y, x = int(down * (height - h + 1)), int(across * (width - w + 1))
            image = image.copy()
            image[y : y + h, x : x + w] = np.round(fill)
            return image
    return image


@pytest.mark.parametrize("name", ["china", "grey"])
@pytest.mark.parametrize("scale", [(0.02, 1 / 3), (0.5, 1.2)])
def test_erase_equals_torchvisions(plan, name, scale):
    image = pictures()[name]
    fill = (123.7, 116.3, 103.5) if name == "china" else 120.6
    random = np.random.default_rng(0)
    for _ in range(15):
        draws = random.random((10, 4), np.float32)
        plan("stateless_uniform", draws, 0.69)
        found = erase(image, (0, 0), 0.7, fill, scale)
        expected = random_erasing(image, draws.tolist(), fill, scale, (0.3, 3.3))
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == tf.uint8
        plan("stateless_uniform", draws, 0.71)
        np.testing.assert_array_equal(erase(image, (0, 0), 0.7, fill, scale), image)


def test_erase_where_no_try_fits():
    image = pictures()["china"]
    found = erase(image, (0, 0), 1.0, 0, scale=(1.1, 1.2), ratio=(0.99, 1.01))
    np.testing.assert_array_equal(found, image)


def test_erased_shares_are_spread_as_they_should_be():
    image = tf.ones((100, 100, 1), tf.uint8)
    left = sample(
        lambda s: tf.reduce_sum(tf.cast(erase(image, s, 0.3, 0), tf.int32)), 2000
    )
    erased = 1 - left[left < 10000] / 10000
    assert scipy.stats.binomtest(len(erased), 2000, 0.3).pvalue > 0.001
    # Sides of the box are rounded, and at 2 percent they are few pixels.
    assert uniform(erased[erased > 0.1], 0.1, 1 / 3 + 0.01)
    assert 0.015 < min(erased) < 0.03


# Colours


def test_pca_colour_by_hand(plan):
    """fb.resnet.torch: for pixels from 0 to 1, the sum over j of V[c, j] a[j] l[j]."""
    image = pictures()["china"]
    for alpha in ([0.1, -0.2, 0.3], [-0.25, 0.05, 0.0], [3.0, 2.0, -1.0]):
        plan("stateless_normal", np.array(alpha) / 0.1)
        a = np.array(alpha) * [0.2175, 0.0188, 0.0045]
        shift = [
            -0.5675 * a[0] + 0.7192 * a[1] + 0.4009 * a[2],
            -0.5808 * a[0] - 0.0045 * a[1] - 0.8140 * a[2],
            -0.5836 * a[0] - 0.6948 * a[1] + 0.4203 * a[2],
        ]
        expected = np.round(np.clip(image / 255 + shift, 0, 1) * 255)
        found = pca_colour(image, (0, 0))
        assert found.dtype == tf.uint8
        np.testing.assert_array_equal(found, expected)


def test_pca_colours_are_spread_as_they_should_be():
    image = tf.fill((1, 1, 3), tf.constant(128, tf.uint8))
    shifts = sample(lambda s: pca_colour(image, s, 0.5), 2000)[:, 0, 0] - 128.0
    # Along the first axis, which is grey but for a little, to a standard deviation.
    axis = np.array([-0.5675, -0.5808, -0.5836])
    along = shifts @ axis / (255 * 0.5 * 0.2175)
    assert scipy.stats.kstest(along, "norm").pvalue > 0.001
    across = shifts - np.outer(shifts @ axis, axis)
    assert np.abs(across).max() < 255 * 0.5 * 0.0188 * 5
    grey = pictures()["grey"]
    np.testing.assert_array_equal(pca_colour(grey, (0, 0), 5.0), grey)


# Operations: how Pillow is told to do them. Those of torchvision.transforms.autoaugment
# (`_apply_op`) and timm.data.auto_augment, at the names in their tables.


def affine(image, matrix, filter):
    image = pillow(image)
    fill = FILL if image.mode == "RGB" else FILL[0]
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, filter, fillcolor=fill
    )


def rotated(image, degrees, filter):
    image = pillow(image)
    fill = FILL if image.mode == "RGB" else FILL[0]
    return image.rotate(degrees, filter, fillcolor=fill)


def posterized(image, bits, _):
    # Pillow now refuses 0 bits, of which an earlier one made black.
    return ImageOps.posterize(pillow(image), int(bits)) if bits >= 1 else image * 0


def solarize_added(image, addition, _):
    table = [min(255, i + int(addition)) if i < 128 else i for i in range(256)]
    return pillow(image).point(table * image.shape[-1])


def enhanced(name):
    return lambda image, factor, _: getattr(ImageEnhance, name)(pillow(image)).enhance(
        factor
    )


PILLOW = {
    "Identity": lambda image, *_: image,
    "ShearX": lambda image, m, filter: affine(image, (1, m, 0, 0, 1, 0), filter),
    "ShearY": lambda image, m, filter: affine(image, (1, 0, 0, m, 1, 0), filter),
    "TranslateX": lambda image, m, filter: affine(image, (1, 0, m, 0, 1, 0), filter),
    "TranslateY": lambda image, m, filter: affine(image, (1, 0, 0, 0, 1, m), filter),
    "Rotate": rotated,
    "Brightness": enhanced("Brightness"),
    "Color": enhanced("Color"),
    "Contrast": enhanced("Contrast"),
    "Sharpness": enhanced("Sharpness"),
    "Posterize": posterized,
    "Solarize": lambda image, m, _: ImageOps.solarize(pillow(image), m),
    "SolarizeAdd": solarize_added,
    "Invert": lambda image, *_: ImageOps.invert(pillow(image)),
    "AutoContrast": lambda image, *_: ImageOps.autocontrast(pillow(image)),
    "Equalize": lambda image, *_: ImageOps.equalize(pillow(image)),
}


def linspace(low, high):
    return lambda bin, sides: np.linspace(low, high, 31, dtype=np.float32)[bin].item()


def whole_linspace(share, axis):
    return lambda bin, sides: int(np.linspace(0, share * sides[axis], 31)[bin])


def torchvision_space(shear, down, across, degrees, factor, bits):
    """name: (the measure at a bin, whether it has a sign, what is added to it)."""
    nothing = (lambda *_: 0.0, False, 0)
    posterize = (lambda bin, sides: 8 - round(bin / (30 / bits)), False, 0)
    return {
        "Identity": nothing,
        "ShearX": (linspace(0, shear), True, 0),
        "ShearY": (linspace(0, shear), True, 0),
        "TranslateX": (across, True, 0),
        "TranslateY": (down, True, 0),
        "Rotate": (linspace(0, degrees), True, 0),
        **dict.fromkeys(
            ("Brightness", "Color", "Contrast", "Sharpness"),
            (linspace(0, factor), True, 1),
        ),
        "Posterize": posterize,
        "Solarize": (linspace(255, 0), False, 0),
        "AutoContrast": nothing,
        "Equalize": nothing,
    }


def timm(most, add=0):
    # In float32, since a factor's last bit decides where a product is truncated.
    return (lambda m, sides: np.float32(m) / 10 * np.float32(most), True, add)


EXPECTED = {
    "rand": torchvision_space(
        0.3, whole_linspace(150 / 331, 0), whole_linspace(150 / 331, 1), 30, 0.9, 4
    ),
    "wide": torchvision_space(
        0.99, lambda b, _: int(32 * b / 30), lambda b, _: int(32 * b / 30), 135, 0.99, 6
    ),
    "increasing": {
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), timm(0)),
        "Rotate": timm(30),
        "Posterize": (lambda m, _: 4 - int(m / 10 * 4), False, 0),
        "Solarize": (lambda m, _: 256 - min(256, int(m / 10 * 256)), False, 0),
        "SolarizeAdd": (lambda m, _: min(128, int(m / 10 * 110)), False, 0),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), timm(0.9, 1)),
        "ShearX": timm(0.3),
        "ShearY": timm(0.3),
        "TranslateX": (lambda m, sides: m / 10 * 0.45 * sides[1], True, 0),
        "TranslateY": (lambda m, sides: m / 10 * 0.45 * sides[0], True, 0),
    },
}
MAGNITUDES = {
    "rand": (0, 9, 17, 30),
    "wide": (0, 11, 20, 30),
    "increasing": (0, 6, 7, 10),
}
MOVING = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def operation(plan, space, name, magnitude, sign, image):
    """Our operation, chosen by the numbers that are drawn."""
    names = list(SPACES[space].ops)
    choice = (names.index(name) + 0.5) / len(names)
    draws = [choice, 0.3, (sign + 1) / 2 * 0.9]
    if space == "wide":
        plan("stateless_uniform", [*draws, (magnitude + 0.5) / 31])
        return trivial_augment(image, (0, 0), FILL[: image.shape[-1]])
    plan("stateless_uniform", [draws])
    increasing = space == "increasing"
    return rand_augment(
        image, (0, 0), 1, magnitude, 0.0, increasing, FILL[: image.shape[-1]]
    )


@pytest.mark.parametrize("space", SPACES)
def test_the_names_are_the_sources(space):
    assert set(SPACES[space].ops) == set(EXPECTED[space])


@pytest.mark.parametrize(
    ("space", "name"), [(s, n) for s in EXPECTED for n in EXPECTED[s]]
)
def test_operation_equals_pillows(plan, space, name):
    measure, signed, base = EXPECTED[space][name]
    bilinear = space == "increasing"
    filter = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST
    changed = False
    for picture in PICTURES:
        image = pictures()[picture]
        for magnitude in MAGNITUDES[space]:
            for sign in (1, -1):
                amount = measure(magnitude, image.shape[:2])
                amount = base + (sign * amount if signed else amount)
                expected = np.asarray(PILLOW[name](image, float(amount), filter))
                expected = expected.reshape(image.shape).astype(int)
                found = operation(plan, space, name, magnitude, sign, image)
                assert found.dtype == tf.uint8
                difference = np.abs(found.numpy() - expected)
                if bilinear and name in MOVING:
                    # Pillow's floats and its fixed-point numbers may differ about
                    # which pixels come from outside, just at the border.
                    assert np.sum(np.any(difference > 1, -1)) <= 4
                else:
                    assert difference.max() == 0, (picture, magnitude, sign)
                changed |= bool(np.any(found != image))
    assert changed == (name != "Identity")


def test_bilinear_keeps_what_is_flat(plan):
    """White stays white: a level less would be a truncated 254.99."""
    image = np.full((60, 70, 3), 255, np.uint8)
    for name in MOVING:
        found = operation(plan, "increasing", name, 7, 1, image).numpy()
        assert set(map(tuple, found.reshape(-1, 3))) == {(255, 255, 255), FILL}


def test_operations_that_are_not_applied(plan):
    """timm applies each with probability 1/2."""
    image = pictures()["china"]
    invert = (list(SPACES["increasing"].ops).index("Invert") + 0.5) / 15
    for skip, expected in ((0.49, 255 - image), (0.51, image)):
        plan("stateless_uniform", [[invert, skip, 0]])
        found = rand_augment(image, (0, 0), 1, 7, 0.5, True)
        np.testing.assert_array_equal(found, expected)
        # torchvision's always are.
        plan("stateless_uniform", [[4.5 / 14, skip, 0]])
        assert np.any(rand_augment(image, (0, 0), 1) != image)


def test_operations_follow_each_other(plan):
    image = pictures()["china"]
    order = ["Solarize", "Color", "Equalize"]
    names = list(SPACES["rand"].ops)
    plan("stateless_uniform", [[(names.index(n) + 0.5) / 14, 0, 0.9] for n in order])
    expected = ImageOps.solarize(Image.fromarray(image), 255 - 15 * 8.5)
    expected = ImageEnhance.Color(expected).enhance(1.45)
    expected = np.asarray(ImageOps.equalize(expected))
    found = rand_augment(image, (0, 0), ops=3, magnitude=15)
    np.testing.assert_array_equal(found, expected)


def test_magnitudes_with_noise(plan):
    """7 with a deviation of 0.5, of each operation its own, from 0 to 10."""
    image = pictures()["china"]
    brightness = (list(SPACES["increasing"].ops).index("Brightness") + 0.5) / 15
    for noise in (-20, -1.5, 0.4, 20):
        plan("stateless_uniform", [[brightness, 0, 0]])
        plan("stateless_normal", [noise])
        magnitude = np.clip(np.float32(7 + noise * 0.5), 0, 10)
        factor = 1 - magnitude / np.float32(10) * np.float32(0.9)
        expected = ImageEnhance.Brightness(Image.fromarray(image)).enhance(
            float(factor)
        )
        found = rand_augment(image, (0, 0), 1, 7, 0.5, True)
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_draws_are_spread_as_they_should_be(monkeypatch):
    """Of what each operation is told, over many seeds."""

    def told(image, space, draws, level, fill):
        return tf.concat([image, draws[:3], [level]], 0)

    monkeypatch.setattr(policies, "_apply_one", told)
    rand = sample(lambda s: rand_augment([0.0], s, 2, 7, 0.5, True), 1500)[:, 1:]
    trivial = sample(lambda s: trivial_augment([0.0], s), 1500)[:, 1:]
    for column in (*rand.T[[0, 1, 2, 4, 5, 6]], *trivial.T[:3]):
        assert uniform(column, 0, 1)
    for levels in rand.T[[3, 7]]:
        assert scipy.stats.kstest((levels * 10 - 7) / 0.5, "norm").pvalue > 0.001
    related = np.corrcoef(np.concatenate([rand, trivial], 1).T[:10])
    assert np.abs(related[np.triu_indices(8, 1)]).max() < 0.1
    bins = np.round(trivial[:, 3] * 30).astype(int)
    np.testing.assert_allclose(trivial[:, 3], bins / 30, atol=1e-6)
    assert scipy.stats.chisquare(np.bincount(bins, minlength=31)).pvalue > 0.001


def test_magnitudes_that_there_are_not():
    image = pictures()["small"]
    for magnitude, increasing, most in (
        (31, False, 30),
        (11, True, 10),
        (-1, False, 30),
    ):
        with pytest.raises(
            InputError, match=f"from 0 to {most} is.*magnitude={magnitude}"
        ):
            rand_augment(image, (0, 0), magnitude=magnitude, increasing=increasing)


IMAGE_FUNCTIONS = {
    "pca_colour": pca_colour,
    "rand_augment": rand_augment,
    "increasing": lambda image, seed: rand_augment(image, seed, 2, 7, 0.5, True, 99.6),
    "trivial_augment": trivial_augment,
    "erase": lambda image, seed: erase(image, seed, 0.9, 3),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", IMAGE_FUNCTIONS)
def test_in_a_dataset_of_images_of_any_size(name, channels):
    """As one by one, the same for a seed and other ones for other seeds."""
    function = IMAGE_FUNCTIONS[name]
    chosen = [pictures()[n] for n in PICTURES if pictures()[n].shape[-1] == channels]
    images = [chosen[i % len(chosen)] for i in range(12)] * 3
    numbers = tf.constant([[first, i] for first in (3, 3, 4) for i in range(12)])
    spec = tf.TensorSpec((None, None, channels), tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: images, output_signature=spec)
    dataset = tf.data.Dataset.zip(
        dataset, tf.data.Dataset.from_tensor_slices(numbers)
    ).map(function)
    assert dataset.element_spec == spec
    results = list(dataset.as_numpy_iterator())
    found, again, other = results[:12], results[12:24], results[24:]
    for image, same in zip(found, again, strict=True):
        np.testing.assert_array_equal(image, same)
    for i in range(5):
        np.testing.assert_array_equal(found[i], function(images[i], numbers[i]))
    differ = sum(map(lambda a, b: bool(np.any(a != b)), found, other))
    assert differ >= (0 if (name, channels) == ("pca_colour", 1) else 3)


def test_boxes_in_a_dataset():
    def boxes(i):
        seed, sides = tf.stack([5, i]), tf.stack([300 + i, 400])
        sides = tf.cast(sides, tf.int32)
        return inception_box(sides, seed), shorter_side_box(sides, seed, (224, 224))

    found = list(tf.data.Dataset.range(12).map(boxes).as_numpy_iterator())
    assert len({tuple(box) for pair in found for box in pair}) == 24
    for i, pair in enumerate(found):
        for box, expected in zip(pair, boxes(tf.constant(i, tf.int64)), strict=True):
            np.testing.assert_array_equal(box, expected)


# Batches


def batch(number, channels=3):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (number, 20, 30, channels), np.uint8)
    return images, np.eye(10, dtype=np.float32)[random.integers(0, 10, number)]


def shares(labels, mixed):
    """Each image's share in a batch whose labels are 0, 1, 0, 1 ... of two classes."""
    np.testing.assert_allclose(mixed.sum(axis=1), 1, atol=1e-6)
    return mixed[np.arange(len(labels)), labels.argmax(axis=1)]


@pytest.mark.parametrize("channels", [1, 3])
def test_mixup_by_hand(channels):
    images, _ = batch(6, channels)
    labels = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    partners = [1, 0, 3, 2, 5, 4]
    drawn = set()
    for seed in range(8):
        mixed, soft = map(np.asarray, mix(images, labels, (seed, 1), 0.8, 0))
        share = shares(labels, soft)
        assert np.ptp(share) < 1e-6
        share = share[0].astype(np.float64)
        exact = share * images + (1 - share) * images[partners].astype(np.float64)
        assert mixed.dtype == np.uint8
        assert np.abs(mixed - exact).max() < 0.5 + 1e-3
        drawn.add(share)
    assert len(drawn) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_cutmix_shares_are_those_of_the_areas(channels):
    images = np.zeros((6, 20, 30, channels), np.uint8)
    images[1::2] = 255
    labels = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    cut = 0
    for seed in range(40):
        mixed, soft = map(np.asarray, mix(images, labels, (seed, 1), 0, 1.0))
        replaced = mixed != images
        np.testing.assert_allclose(
            shares(labels, soft), 1 - replaced.mean(axis=(1, 2, 3)), atol=1e-6
        )
        rows, columns = np.nonzero(replaced[0, ..., 0])
        if len(rows):  # One box, the same for all.
            box = np.zeros_like(replaced)
            box[:, min(rows) : max(rows) + 1, min(columns) : max(columns) + 1] = True
            np.testing.assert_array_equal(replaced, box)
            cut += 1
    assert cut > 25


def test_cutmix_boxes_equal_the_papers(plan):
    """Its algorithm: sides are sqrt(1 - lambda) of the image's, any centre, clipped."""
    images, labels = batch(2)
    random = np.random.default_rng(1)
    for _ in range(30):
        gammas, centre = random.random(2), random.random(2).astype(np.float32)
        plan("stateless_uniform", centre)
        plan("stateless_gamma", gammas)
        mixed, _ = mix(images, labels, (0, 0), 0, 1.0)
        cut = math.sqrt(1 - gammas[0] / gammas.sum())
        y, x = int(centre[0] * 20), int(centre[1] * 30)
        h, w = int(20 * cut), int(30 * cut)
        top, bottom = np.clip([y - h // 2, y + h // 2], 0, 20)
        left, right = np.clip([x - w // 2, x + w // 2], 0, 30)
        expected = images.copy()
        expected[:, top:bottom, left:right] = images[::-1, top:bottom, left:right]
        np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0])
def test_shares_have_the_beta_distribution(alpha):
    images, labels = tf.zeros((2, 1, 1, 1), tf.uint8), tf.eye(2)
    drawn = sample(lambda s: mix(images, labels, s, alpha, 0)[1][0, 0], 1500)
    # Of a small alpha many are next to 0 or 1, and float32 has no numbers near 1.
    lower = drawn[drawn < 0.5].astype(np.float64)
    assert scipy.stats.binomtest(len(lower), 1500, 0.5).pvalue > 0.001
    assert uniform(2 * scipy.stats.beta(alpha, alpha).cdf(lower), 0, 1)


def test_mixup_or_cutmix_is_drawn():
    """A box keeps the pixels' values, black and white; a blend has none of them."""
    images = tf.concat([tf.zeros((1, 16, 16, 1)), tf.fill((1, 16, 16, 1), 255.0)], 0)
    images = tf.cast(images, tf.uint8)
    mixed = sample(lambda s: mix(images, tf.eye(2), s, 1.0, 1.0)[0], 600)
    boxed = sum(set(np.unique(pair)) <= {0, 255} for pair in mixed)
    assert scipy.stats.binomtest(boxed, 600, 0.5).pvalue > 0.001


@pytest.mark.parametrize("alphas", [(0.8, 0), (0, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize("number", [1, 2, 8, 9])
def test_parts_of_a_batch_are_mixed_as_the_whole(number, alphas):
    images, labels = batch(number)
    for seed in range(4):
        whole = mix(images, labels, (seed, 7), *alphas)
        assert whole[0].shape == images.shape
        again = mix(images, labels, (seed, 7), *alphas)
        for start, stop in ((0, 2), (2, 6), (6, number), (0, 6)):
            part = slice(start, stop)
            found = mix(images[part], labels[part], (seed, 7), *alphas)
            for ours, expected in zip(found, whole, strict=True):
                np.testing.assert_array_equal(ours, expected[part])
        for ours, expected in zip(again, whole, strict=True):
            np.testing.assert_array_equal(ours, expected)
        if number % 2:  # The last one has no partner.
            np.testing.assert_array_equal(whole[0][-1], images[-1])
            np.testing.assert_array_equal(whole[1][-1], labels[-1])


def test_no_mixing():
    images, labels = batch(4)
    mixed, same = mix(images, labels, (0, 0), 0, 0)
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(same, labels)


def test_mixing_in_a_dataset():
    images, labels = batch(14)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    dataset = tf.data.Dataset.zip(dataset, tf.data.Dataset.range(4))
    dataset = dataset.map(lambda b, i: mix(*b, tf.stack([1, i]), 0.8, 1.0))
    for i, (mixed, soft) in enumerate(dataset):
        part = slice(4 * i, 4 * i + 4)
        expected = mix(
            images[part], labels[part], tf.constant([1, i], tf.int64), 0.8, 1.0
        )
        np.testing.assert_array_equal(mixed, expected[0])
        np.testing.assert_array_equal(soft, expected[1])
    assert dataset.element_spec[0].shape.as_list() == [None, 20, 30, 3]
