"""Tests of augmentation against Pillow, published formulas and distributions."""

import fractions
import functools
import math

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from keras_resnet.data import policies
from keras_resnet.data.augmentation import (
    draw_inception_box,
    draw_shorter_side_box,
    erase,
    mix,
    shift_colours,
)
from keras_resnet.data.policies import SPACES, rand_augment, trivial_augment
from keras_resnet.support.errors import InputError

FILL = (124, 116, 104)


@functools.cache
def load_test_images():
    """Returns a dict of uint8 test images by name.

    "china" is a photograph in colour, and "grey" is a grey version of "china". The
    other images have few pixels or few colours.
    """
    sample_image = load_sample_image("china.jpg")
    china = sample_image[100:222, 200:361]
    one_colour, two_colours = (
        np.full((9, 12, 3), 77, np.uint8),
        np.full((9, 12, 3), 40, np.uint8),
    )
    two_colours[:5] = 90, 40, 255
    return {
        "china": china,
        "grey": np.asarray(Image.fromarray(china).convert("L"))[..., None],
        "flat": one_colour,
        "two colours": two_colours,
        "small": sample_image[200:208, 300:308],
    }


IMAGE_NAMES = ["china", "grey", "flat", "two colours", "small"]


def to_pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def make_seeds(count, first=0):
    return tf.stack([tf.fill([count], first), tf.range(count)], 1)


def draw_samples(function, count):
    """Returns the results of a function for `count` seeds as an array (count, ...)."""
    draw = tf.function(
        lambda: tf.map_fn(function, make_seeds(count), function(make_seeds(1)[0]).dtype)
    )
    return draw().numpy()


@pytest.fixture
def fix_draws(monkeypatch):
    """Function that patches the function `name` of `tf.random` to return given values.

    Each call of the patched function returns the next value.
    """

    def replace_draws(name, *values):
        remaining_values = iter(values)

        def draw(shape, seed, *_):
            return tf.constant(
                np.asarray(next(remaining_values)).reshape(shape), tf.float32
            )

        monkeypatch.setattr(tf.random, name, draw)

    return replace_draws


def is_uniform(values, low, high):
    """Returns whether a Kolmogorov-Smirnov test accepts a uniform distribution.

    The significance level is 0.001.
    """
    assert min(values) >= low
    assert max(values) <= high
    return scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.001


# Random boxes


def draw_torchvision_box(sides, draws, scale, ratio):
    """Implements torchvision's RandomResizedCrop.get_params with given random numbers.

    Returns:
        The box (y, x, height, width) in pixels.
    """
    height, width = sides
    for area_draw, aspect_draw, y_draw, x_draw in draws:
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + aspect_draw * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(y_draw * (height - h + 1)), int(x_draw * (width - w + 1)), h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


# Height and width of an image in pixels, and random seeds.
SIDES = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
SEEDS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))


@tf.function(input_signature=[tf.TensorSpec(2, "int32")] * 2 + [tf.TensorSpec(())])
def draw_inception_box_of_area(sides, seed, min_area):
    return draw_inception_box(sides, seed, (min_area, 1.0))


@settings(max_examples=100)
@given(SIDES, SEEDS, st.floats(2**-6, 1, width=32))
def test_inception_box_equals_torchvision(sides, seed, min_area):
    draws = tf.random.stateless_uniform((10, 4), seed).numpy().tolist()
    box = draw_inception_box_of_area(sides, seed, min_area)
    assert box.dtype == tf.int32
    y, x, height, width = box.numpy()
    expected = draw_torchvision_box(sides, draws, (min_area, 1.0), (3 / 4, 4 / 3))
    assert (y, x, height, width) == expected
    assert 0 <= y < y + height <= sides[0]
    assert 0 <= x < x + width <= sides[1]


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((100, 1000), (0, 433, 100, 133)),
        ((1001, 100), (434, 0, 133, 100)),
        ((100, 110), (0, 0, 100, 110)),
    ],
)
def test_inception_box_is_central_if_no_random_box_fits(sides, expected):
    box = draw_inception_box(sides, (1, 2), scale=(1.5, 2.0))
    assert tuple(box.numpy()) == expected


def test_inception_boxes_have_uniform_areas_ratios_and_positions():
    boxes = draw_samples(
        lambda s: draw_inception_box((2000, 3000), s, (0.1, 0.25)), 1500
    )
    y, x, height, width = boxes.T.astype(float)
    area_fraction, ratio = height * width / 6e6, np.log(width / height)
    y_fraction, x_fraction = y / (2000 - height), x / (3000 - width)
    assert is_uniform(area_fraction, 0.1 - 1e-3, 0.25 + 1e-3)
    assert is_uniform(ratio, math.log(0.749), math.log(1.335))
    assert is_uniform(y_fraction, 0, 1)
    assert is_uniform(x_fraction, 0, 1)
    correlations = np.corrcoef([area_fraction, ratio, y_fraction, x_fraction])
    assert abs(correlations[np.triu_indices(4, 1)]).max() < 0.1


@given(SIDES, SEEDS, st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_shorter_side_box_is_a_crop_of_the_resized_image(sides, seed, size):
    """Sides of the resized image are computed exactly, with fractions."""
    draws = tf.random.stateless_uniform((3,), seed).numpy()
    low, high = (round(side * min(size) / 224) for side in (256, 480))
    shorter_side = low + int(draws[0] * np.float32(high - low + 1))
    # Boxes are relative to the shorter side of the crop, which may not be square.
    scale = max(
        fractions.Fraction(shorter_side * side, min(size) * image_side)
        for side, image_side in zip(size, sides, strict=True)
    )
    box = np.float64(draw_shorter_side_box(sides, seed, size))
    for axis in range(2):
        resized_side = math.floor(sides[axis] * scale)
        count = resized_side - size[axis] + 1
        corner = int(draws[1 + axis] * np.float32(count))
        expected = np.array([corner, size[axis]]) * sides[axis] / resized_side
        np.testing.assert_allclose(box[axis::2], expected, rtol=1e-5)
    # The box is a crop of the resized image at whole pixels. Float32 has 24 bits.
    resized_sides, corner = size / box[2:] * sides, box[:2] / box[2:] * size
    np.testing.assert_allclose(resized_sides, np.round(resized_sides), rtol=2e-7)
    np.testing.assert_allclose(corner, np.round(corner), rtol=2e-7)
    assert np.all(np.round(corner) >= 0)
    assert np.all(np.round(corner) + size <= np.round(resized_sides))


def test_shorter_side_boxes_have_uniform_scales_and_positions():
    boxes = draw_samples(
        lambda s: draw_shorter_side_box((300, 400), s, (224, 224)), 4000
    )
    y, x, height, width = boxes.T.astype(float)
    shorter_sides = np.round(224 / height * 300).astype(int)
    assert set(shorter_sides) == set(range(256, 481))
    assert scipy.stats.chisquare(np.bincount(shorter_sides - 256)).pvalue > 0.001
    # Noise from [0, 1) makes equally likely integer positions uniform on an interval.
    # The test thus detects a border position that is less likely than the others.
    random = np.random.default_rng(0)
    row = np.round(y / height * 224) + random.random(4000)
    column = np.round(x / width * 224) + random.random(4000)
    assert is_uniform(row / (shorter_sides - 223), 0, 1)
    assert is_uniform(column / (np.floor(shorter_sides * 400 / 300) - 223), 0, 1)


def test_shorter_side_below_the_input_is_refused():
    with pytest.raises(
        InputError, match=r"224 <= low.* Received: shorter_range=\(200, 480\)"
    ):
        draw_shorter_side_box((300, 400), (0, 0), (224, 224), (200, 480))


def erase_like_torchvision(image, draws, fill, scale, ratio):
    """Implements torchvision's RandomErasing with given random numbers."""
    height, width = image.shape[:2]
    for area_draw, aspect_draw, y_draw, x_draw in draws:
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + aspect_draw * (high - low))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            y, x = int(y_draw * (height - h + 1)), int(x_draw * (width - w + 1))
            image = image.copy()
            image[y : y + h, x : x + w] = np.round(fill)
            return image
    return image


@pytest.mark.parametrize("name", ["china", "grey"])
@pytest.mark.parametrize("scale", [(0.02, 1 / 3), (0.5, 1.2)])
def test_erase_equals_torchvision(fix_draws, name, scale):
    image = load_test_images()[name]
    fill = (123.7, 116.3, 103.5) if name == "china" else 120.6
    random = np.random.default_rng(0)
    for _ in range(15):
        draws = random.random((10, 4), np.float32)
        fix_draws("stateless_uniform", draws, 0.69)
        erased = erase(image, (0, 0), 0.7, fill, scale)
        expected = erase_like_torchvision(
            image, draws.tolist(), fill, scale, (0.3, 3.3)
        )
        np.testing.assert_array_equal(erased, expected)
        assert erased.dtype == tf.uint8
        fix_draws("stateless_uniform", draws, 0.71)
        np.testing.assert_array_equal(erase(image, (0, 0), 0.7, fill, scale), image)


def test_erase_returns_the_image_if_no_box_fits():
    image = load_test_images()["china"]
    erased = erase(image, (0, 0), 1.0, 0, scale=(1.1, 1.2), ratio=(0.99, 1.01))
    np.testing.assert_array_equal(erased, image)


def test_erased_areas_are_uniform():
    image = tf.ones((100, 100, 1), tf.uint8)
    num_intact_pixels = draw_samples(
        lambda s: tf.reduce_sum(tf.cast(erase(image, s, 0.3, 0), tf.int32)), 2000
    )
    area_fractions = 1 - num_intact_pixels[num_intact_pixels < 10000] / 10000
    assert scipy.stats.binomtest(len(area_fractions), 2000, 0.3).pvalue > 0.001
    # Small boxes are excluded, because rounding their sides distorts their areas.
    assert is_uniform(area_fractions[area_fractions > 0.1], 0.1, 1 / 3 + 0.01)
    assert 0.015 < min(area_fractions) < 0.03


# Colours


def test_shift_colours_equals_the_formula(fix_draws):
    """In fb.resnet.torch, channel c is shifted by the sum over j of V[c, j] a[j] l[j].

    V holds the eigenvectors, l the eigenvalues and a the random factors. The formula
    applies to pixel values from 0 to 1.
    """
    image = load_test_images()["china"]
    for factors in ([0.1, -0.2, 0.3], [-0.25, 0.05, 0.0], [3.0, 2.0, -1.0]):
        fix_draws("stateless_normal", np.array(factors) / 0.1)
        a = np.array(factors) * [0.2175, 0.0188, 0.0045]
        shift = [
            -0.5675 * a[0] + 0.7192 * a[1] + 0.4009 * a[2],
            -0.5808 * a[0] - 0.0045 * a[1] - 0.8140 * a[2],
            -0.5836 * a[0] - 0.6948 * a[1] + 0.4203 * a[2],
        ]
        expected = np.round(np.clip(image / 255 + shift, 0, 1) * 255)
        shifted = shift_colours(image, (0, 0))
        assert shifted.dtype == tf.uint8
        np.testing.assert_array_equal(shifted, expected)


def test_colour_shifts_are_normal_along_the_principal_components():
    image = tf.fill((1, 1, 3), tf.constant(128, tf.uint8))
    shifts = draw_samples(lambda s: shift_colours(image, s, 0.5), 2000)[:, 0, 0] - 128.0
    # The shifts along the first principal component, which is nearly grey, are divided
    # by their standard deviation, so that they are standard normal.
    axis = np.array([-0.5675, -0.5808, -0.5836])
    first_component = shifts @ axis / (255 * 0.5 * 0.2175)
    assert scipy.stats.kstest(first_component, "norm").pvalue > 0.001
    residual = shifts - np.outer(shifts @ axis, axis)
    assert np.abs(residual).max() < 255 * 0.5 * 0.0188 * 5
    grey = load_test_images()["grey"]
    np.testing.assert_array_equal(shift_colours(grey, (0, 0), 5.0), grey)


# The operations of RandAugment and TrivialAugment are implemented with Pillow, as in
# torchvision.transforms.autoaugment (`_apply_op`) and timm.data.auto_augment.
# The keys of `PILLOW_OPERATIONS` are the operations' names in the two modules.


def transform(image, matrix, filter):
    image = to_pillow(image)
    fill = FILL if image.mode == "RGB" else FILL[0]
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, filter, fillcolor=fill
    )


def rotate(image, degrees, filter):
    image = to_pillow(image)
    fill = FILL if image.mode == "RGB" else FILL[0]
    return image.rotate(degrees, filter, fillcolor=fill)


def posterize(image, bits, _):
    # 0 bits give a black image, as in earlier Pillow. Current versions refuse 0 bits.
    return ImageOps.posterize(to_pillow(image), int(bits)) if bits >= 1 else image * 0


def solarize_add(image, addition, _):
    table = [min(255, i + int(addition)) if i < 128 else i for i in range(256)]
    return to_pillow(image).point(table * image.shape[-1])


def make_enhance(name):
    return lambda image, factor, _: getattr(ImageEnhance, name)(
        to_pillow(image)
    ).enhance(factor)


PILLOW_OPERATIONS = {
    "Identity": lambda image, *_: image,
    "ShearX": lambda image, m, filter: transform(image, (1, m, 0, 0, 1, 0), filter),
    "ShearY": lambda image, m, filter: transform(image, (1, 0, 0, m, 1, 0), filter),
    "TranslateX": lambda image, m, filter: transform(image, (1, 0, m, 0, 1, 0), filter),
    "TranslateY": lambda image, m, filter: transform(image, (1, 0, 0, 0, 1, m), filter),
    "Rotate": rotate,
    "Brightness": make_enhance("Brightness"),
    "Color": make_enhance("Color"),
    "Contrast": make_enhance("Contrast"),
    "Sharpness": make_enhance("Sharpness"),
    "Posterize": posterize,
    "Solarize": lambda image, m, _: ImageOps.solarize(to_pillow(image), m),
    "SolarizeAdd": solarize_add,
    "Invert": lambda image, *_: ImageOps.invert(to_pillow(image)),
    "AutoContrast": lambda image, *_: ImageOps.autocontrast(to_pillow(image)),
    "Equalize": lambda image, *_: ImageOps.equalize(to_pillow(image)),
}


def make_linear_function(low, high):
    return lambda magnitude, sides: np.linspace(low, high, 31, dtype=np.float32)[
        magnitude
    ].item()


def make_integer_function(fraction, axis):
    return lambda magnitude, sides: int(
        np.linspace(0, fraction * sides[axis], 31)[magnitude]
    )


def make_torchvision_rules(shear, find_dy, find_dx, degrees, factor, bits):
    """Returns a dict from an operation's name to (find_parameter, is_signed, offset).

    The parameter of the operation is offset + find_parameter(magnitude, sides). If
    `is_signed`, the sign of the second term is random.
    """
    no_parameter = (lambda *_: 0.0, False, 0)
    posterize_rule = (
        lambda magnitude, sides: 8 - round(magnitude / (30 / bits)),
        False,
        0,
    )
    return {
        "Identity": no_parameter,
        "ShearX": (make_linear_function(0, shear), True, 0),
        "ShearY": (make_linear_function(0, shear), True, 0),
        "TranslateX": (find_dx, True, 0),
        "TranslateY": (find_dy, True, 0),
        "Rotate": (make_linear_function(0, degrees), True, 0),
        **dict.fromkeys(
            ("Brightness", "Color", "Contrast", "Sharpness"),
            (make_linear_function(0, factor), True, 1),
        ),
        "Posterize": posterize_rule,
        "Solarize": (make_linear_function(255, 0), False, 0),
        "AutoContrast": no_parameter,
        "Equalize": no_parameter,
    }


def make_timm_rule(largest, offset=0):
    # The parameter is rounded to float32 as in `policies`. Operations multiply pixel
    # values by the parameter and truncate the products, so its last bit matters.
    return (
        lambda magnitude, sides: np.float32(magnitude) / 10 * np.float32(largest),
        True,
        offset,
    )


EXPECTED_RULES = {
    "rand": make_torchvision_rules(
        0.3,
        make_integer_function(150 / 331, 0),
        make_integer_function(150 / 331, 1),
        30,
        0.9,
        4,
    ),
    "wide": make_torchvision_rules(
        0.99,
        lambda magnitude, _: int(32 * magnitude / 30),
        lambda magnitude, _: int(32 * magnitude / 30),
        135,
        0.99,
        6,
    ),
    "increasing": {
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), make_timm_rule(0)),
        "Rotate": make_timm_rule(30),
        "Posterize": (lambda magnitude, _: 4 - int(magnitude / 10 * 4), False, 0),
        "Solarize": (
            lambda magnitude, _: 256 - min(256, int(magnitude / 10 * 256)),
            False,
            0,
        ),
        "SolarizeAdd": (
            lambda magnitude, _: min(128, int(magnitude / 10 * 110)),
            False,
            0,
        ),
        **dict.fromkeys(
            ("Color", "Contrast", "Brightness", "Sharpness"), make_timm_rule(0.9, 1)
        ),
        "ShearX": make_timm_rule(0.3),
        "ShearY": make_timm_rule(0.3),
        "TranslateX": (
            lambda magnitude, sides: magnitude / 10 * 0.45 * sides[1],
            True,
            0,
        ),
        "TranslateY": (
            lambda magnitude, sides: magnitude / 10 * 0.45 * sides[0],
            True,
            0,
        ),
    },
}
MAGNITUDES = {
    "rand": (0, 9, 17, 30),
    "wide": (0, 11, 20, 30),
    "increasing": (0, 6, 7, 10),
}
GEOMETRIC_OPERATIONS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def apply_operation(fix_draws, space, name, magnitude, sign, image):
    """Applies the given operation of `policies` by fixing the random numbers."""
    names = list(SPACES[space].ops)
    operation_draw = (names.index(name) + 0.5) / len(names)
    draws = [operation_draw, 0.3, (sign + 1) / 2 * 0.9]
    if space == "wide":
        fix_draws("stateless_uniform", [*draws, (magnitude + 0.5) / 31])
        return trivial_augment(image, (0, 0), FILL[: image.shape[-1]])
    fix_draws("stateless_uniform", [draws])
    increasing = space == "increasing"
    return rand_augment(
        image, (0, 0), 1, magnitude, 0.0, increasing, FILL[: image.shape[-1]]
    )


@pytest.mark.parametrize("space", SPACES)
def test_operation_names_equal_those_of_torchvision_and_timm(space):
    assert set(SPACES[space].ops) == set(EXPECTED_RULES[space])


@pytest.mark.parametrize(
    ("space", "name"), [(s, n) for s in EXPECTED_RULES for n in EXPECTED_RULES[s]]
)
def test_operation_equals_pillow(fix_draws, space, name):
    find_parameter, is_signed, offset = EXPECTED_RULES[space][name]
    bilinear = space == "increasing"
    filter = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST
    has_changed = False
    magnitudes = MAGNITUDES[space]
    for image_name, magnitude, sign in (
        *(("china", magnitude, -1) for magnitude in magnitudes),
        *(("china", magnitude, 1) for magnitude in magnitudes[1:]),
        *((image_name, magnitudes[1], 1) for image_name in IMAGE_NAMES[1:]),
        *((image_name, magnitudes[3], -1) for image_name in IMAGE_NAMES[1:]),
    ):
        image = load_test_images()[image_name]
        parameter = find_parameter(magnitude, image.shape[:2])
        parameter = offset + (sign * parameter if is_signed else parameter)
        expected = np.asarray(PILLOW_OPERATIONS[name](image, float(parameter), filter))
        expected = expected.reshape(image.shape).astype(int)
        result = apply_operation(fix_draws, space, name, magnitude, sign, image)
        assert result.dtype == tf.uint8
        difference = np.abs(result.numpy() - expected)
        if bilinear and name in GEOMETRIC_OPERATIONS:
            # Pillow computes bilinear transforms in floating point. Rounding errors
            # decide whether a border pixel is outside of the image.
            assert np.sum(np.any(difference > 1, -1)) <= 4
        else:
            assert difference.max() == 0, (image_name, magnitude, sign)
        has_changed |= bool(np.any(result != image))
    assert has_changed == (name != "Identity")


def test_bilinear_interpolation_keeps_constant_areas(fix_draws):
    """A white image stays white, although interpolated values may be 254.99."""
    image = np.full((60, 70, 3), 255, np.uint8)
    for name in GEOMETRIC_OPERATIONS:
        result = apply_operation(fix_draws, "increasing", name, 7, 1, image).numpy()
        assert set(map(tuple, result.reshape(-1, 3))) == {(255, 255, 255), FILL}


def test_timm_applies_each_operation_with_probability_one_half(fix_draws):
    """In contrast, torchvision's RandAugment applies every drawn operation."""
    image = load_test_images()["china"]
    invert_draw = (list(SPACES["increasing"].ops).index("Invert") + 0.5) / 15
    for probability_draw, expected in ((0.49, 255 - image), (0.51, image)):
        fix_draws("stateless_uniform", [[invert_draw, probability_draw, 0]])
        result = rand_augment(image, (0, 0), 1, 7, 0.5, True)
        np.testing.assert_array_equal(result, expected)
        fix_draws("stateless_uniform", [[4.5 / 14, probability_draw, 0]])
        assert np.any(rand_augment(image, (0, 0), 1) != image)


def test_operations_are_applied_in_order(fix_draws):
    image = load_test_images()["china"]
    operation_names = ["Solarize", "Color", "Equalize"]
    all_names = list(SPACES["rand"].ops)
    fix_draws(
        "stateless_uniform",
        [[(all_names.index(n) + 0.5) / 14, 0, 0.9] for n in operation_names],
    )
    expected = ImageOps.solarize(Image.fromarray(image), 255 - 15 * 8.5)
    expected = ImageEnhance.Color(expected).enhance(1.45)
    expected = np.asarray(ImageOps.equalize(expected))
    result = rand_augment(image, (0, 0), ops=3, magnitude=15)
    np.testing.assert_array_equal(result, expected)


def test_random_magnitudes_are_clipped_to_their_range(fix_draws):
    """The mean magnitude is 7, the standard deviation 0.5, and the range 0 to 10."""
    image = load_test_images()["china"]
    brightness_draw = (list(SPACES["increasing"].ops).index("Brightness") + 0.5) / 15
    for noise in (-20, -1.5, 0.4, 20):
        fix_draws("stateless_uniform", [[brightness_draw, 0, 0]])
        fix_draws("stateless_normal", [noise])
        magnitude = np.clip(np.float32(7 + noise * 0.5), 0, 10)
        factor = 1 - magnitude / np.float32(10) * np.float32(0.9)
        expected = ImageEnhance.Brightness(Image.fromarray(image)).enhance(
            float(factor)
        )
        result = rand_augment(image, (0, 0), 1, 7, 0.5, True)
        np.testing.assert_array_equal(result, np.asarray(expected))


def test_policy_draws_are_uniform_or_normal_and_uncorrelated(monkeypatch):
    def record_draws(image, space, draws, level, fill):
        return tf.concat([image, draws[:3], [level]], 0)

    monkeypatch.setattr(policies, "_apply_one_operation", record_draws)
    rand_draws = draw_samples(lambda s: rand_augment([0.0], s, 2, 7, 0.5, True), 1500)[
        :, 1:
    ]
    trivial_draws = draw_samples(lambda s: trivial_augment([0.0], s), 1500)[:, 1:]
    for column in (*rand_draws.T[[0, 1, 2, 4, 5, 6]], *trivial_draws.T[:3]):
        assert is_uniform(column, 0, 1)
    for levels in rand_draws.T[[3, 7]]:
        assert scipy.stats.kstest((levels * 10 - 7) / 0.5, "norm").pvalue > 0.001
    correlations = np.corrcoef(np.concatenate([rand_draws, trivial_draws], 1).T[:10])
    assert np.abs(correlations[np.triu_indices(8, 1)]).max() < 0.1
    magnitudes = np.round(trivial_draws[:, 3] * 30).astype(int)
    np.testing.assert_allclose(trivial_draws[:, 3], magnitudes / 30, atol=1e-6)
    assert scipy.stats.chisquare(np.bincount(magnitudes, minlength=31)).pvalue > 0.001


def test_magnitudes_out_of_range_are_refused():
    image = load_test_images()["small"]
    for magnitude, increasing, largest in (
        (31, False, 30),
        (11, True, 10),
        (-1, False, 30),
    ):
        with pytest.raises(
            InputError, match=rf"from 0 to {largest}\..*magnitude={magnitude}"
        ):
            rand_augment(image, (0, 0), magnitude=magnitude, increasing=increasing)


IMAGE_FUNCTIONS = {
    "pca_colour": shift_colours,
    "rand_augment": lambda image, seed: rand_augment(image, seed, 1),
    "increasing": lambda image, seed: rand_augment(image, seed, 1, 7, 0.5, True, 99.6),
    "trivial_augment": trivial_augment,
    "erase": lambda image, seed: erase(image, seed, 0.9, 3),
}


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("pca_colour", 1),
        ("pca_colour", 3),
        ("rand_augment", 3),
        ("increasing", 3),
        ("trivial_augment", 1),
        ("erase", 3),
    ],
)
def test_functions_work_in_a_dataset_of_images_of_any_size(name, channels):
    """Results equal those of direct calls and depend only on the image and the seed."""
    function = IMAGE_FUNCTIONS[name]
    images_with_channels = [
        load_test_images()[n]
        for n in IMAGE_NAMES
        if load_test_images()[n].shape[-1] == channels
    ]
    images = [
        images_with_channels[i % len(images_with_channels)] for i in range(12)
    ] * 3
    seeds = tf.constant([[first, i] for first in (3, 3, 4) for i in range(12)])
    spec = tf.TensorSpec((None, None, channels), tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: images, output_signature=spec)
    dataset = tf.data.Dataset.zip(
        dataset, tf.data.Dataset.from_tensor_slices(seeds)
    ).map(function)
    assert dataset.element_spec == spec
    outputs = list(dataset.as_numpy_iterator())
    results, repeated_results, other_seed_results = (
        outputs[:12],
        outputs[12:24],
        outputs[24:],
    )
    for image, repeated_image in zip(results, repeated_results, strict=True):
        np.testing.assert_array_equal(image, repeated_image)
    for i in range(5):
        np.testing.assert_array_equal(results[i], function(images[i], seeds[i]))
    num_different = sum(
        map(lambda a, b: bool(np.any(a != b)), results, other_seed_results)
    )
    assert num_different >= (0 if (name, channels) == ("pca_colour", 1) else 3)


def test_boxes_can_be_drawn_in_a_dataset():
    def draw_boxes(i):
        seed, sides = tf.stack([5, i]), tf.stack([300 + i, 400])
        sides = tf.cast(sides, tf.int32)
        return draw_inception_box(sides, seed), draw_shorter_side_box(
            sides, seed, (224, 224)
        )

    box_pairs = list(tf.data.Dataset.range(12).map(draw_boxes).as_numpy_iterator())
    assert len({tuple(box) for box_pair in box_pairs for box in box_pair}) == 24
    for i, box_pair in enumerate(box_pairs):
        for box, expected in zip(
            box_pair, draw_boxes(tf.constant(i, tf.int64)), strict=True
        ):
            np.testing.assert_array_equal(box, expected)


# Mixup and CutMix


def make_batch(count, channels=3):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 20, 30, channels), np.uint8)
    return images, np.eye(10, dtype=np.float32)[random.integers(0, 10, count)]


def find_weights(labels, mixed_labels):
    """Returns each image's weight in the mixture with an image of another class."""
    np.testing.assert_allclose(mixed_labels.sum(axis=1), 1, atol=1e-6)
    return mixed_labels[np.arange(len(labels)), labels.argmax(axis=1)]


@pytest.mark.parametrize("channels", [1, 3])
def test_mixup_equals_the_formula(channels):
    images, _ = make_batch(6, channels)
    labels = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    partner_indices = [1, 0, 3, 2, 5, 4]
    weights = set()
    for seed in range(8):
        mixed, mixed_labels = map(np.asarray, mix(images, labels, (seed, 1), 0.8, 0))
        weight = find_weights(labels, mixed_labels)
        assert np.ptp(weight) < 1e-6
        weight = weight[0].astype(np.float64)
        expected = weight * images + (1 - weight) * images[partner_indices].astype(
            np.float64
        )
        assert mixed.dtype == np.uint8
        assert np.abs(mixed - expected).max() < 0.5 + 1e-3
        weights.add(weight)
    assert len(weights) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_cutmix_weights_labels_by_area(channels):
    images = np.zeros((6, 20, 30, channels), np.uint8)
    images[1::2] = 255
    labels = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0, 1]]
    num_boxes = 0
    for seed in range(40):
        mixed, mixed_labels = map(np.asarray, mix(images, labels, (seed, 1), 0, 1.0))
        is_replaced = mixed != images
        np.testing.assert_allclose(
            find_weights(labels, mixed_labels),
            1 - is_replaced.mean(axis=(1, 2, 3)),
            atol=1e-6,
        )
        row_indices, column_indices = np.nonzero(is_replaced[0, ..., 0])
        if len(row_indices):  # The same box is replaced in all images.
            box = np.zeros_like(is_replaced)
            box[
                :,
                min(row_indices) : max(row_indices) + 1,
                min(column_indices) : max(column_indices) + 1,
            ] = True
            np.testing.assert_array_equal(is_replaced, box)
            num_boxes += 1
    assert num_boxes > 25


def test_cutmix_boxes_equal_the_paper(fix_draws):
    """Before clipping, the box's sides are sqrt(1 - lambda) times the image's sides."""
    images, labels = make_batch(2)
    random = np.random.default_rng(1)
    for _ in range(30):
        gammas, centre_draws = random.random(2), random.random(2).astype(np.float32)
        fix_draws("stateless_uniform", centre_draws)
        fix_draws("stateless_gamma", gammas)
        mixed, _ = mix(images, labels, (0, 0), 0, 1.0)
        side_fraction = math.sqrt(1 - gammas[0] / gammas.sum())
        y, x = int(centre_draws[0] * 20), int(centre_draws[1] * 30)
        h, w = int(20 * side_fraction), int(30 * side_fraction)
        top, bottom = np.clip([y - h // 2, y + h // 2], 0, 20)
        left, right = np.clip([x - w // 2, x + w // 2], 0, 30)
        expected = images.copy()
        expected[:, top:bottom, left:right] = images[::-1, top:bottom, left:right]
        np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0])
def test_mixing_weights_have_the_beta_distribution(alpha):
    images, labels = tf.zeros((2, 1, 1, 1), tf.uint8), tf.eye(2)
    weights = draw_samples(lambda s: mix(images, labels, s, alpha, 0)[1][0, 0], 1500)
    # Only weights below 0.5 are tested. For a small alpha, many weights are close to 1,
    # where float32 is too coarse.
    low_weights = weights[weights < 0.5].astype(np.float64)
    assert scipy.stats.binomtest(len(low_weights), 1500, 0.5).pvalue > 0.001
    assert is_uniform(2 * scipy.stats.beta(alpha, alpha).cdf(low_weights), 0, 1)


def test_mixup_and_cutmix_are_equally_likely():
    """Only Mixup of black and white makes grey pixels, so pairs without are CutMix."""
    images = tf.concat([tf.zeros((1, 16, 16, 1)), tf.fill((1, 16, 16, 1), 255.0)], 0)
    images = tf.cast(images, tf.uint8)
    mixed = draw_samples(lambda s: mix(images, tf.eye(2), s, 1.0, 1.0)[0], 600)
    num_cutmix = sum(set(np.unique(pair)) <= {0, 255} for pair in mixed)
    assert scipy.stats.binomtest(num_cutmix, 600, 0.5).pvalue > 0.001


@pytest.mark.parametrize("alphas", [(0.8, 0), (0, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize("count", [1, 2, 8, 9])
def test_parts_of_a_batch_are_mixed_like_the_whole_batch(count, alphas):
    images, labels = make_batch(count)
    for seed in range(4):
        mixed = mix(images, labels, (seed, 7), *alphas)
        assert mixed[0].shape == images.shape
        repeated = mix(images, labels, (seed, 7), *alphas)
        for start, stop in ((0, 2), (2, 6), (6, count), (0, 6)):
            part = slice(start, stop)
            mixed_part = mix(images[part], labels[part], (seed, 7), *alphas)
            for array, expected in zip(mixed_part, mixed, strict=True):
                np.testing.assert_array_equal(array, expected[part])
        for array, expected in zip(repeated, mixed, strict=True):
            np.testing.assert_array_equal(array, expected)
        if count % 2:  # The last image has no partner and is unchanged.
            np.testing.assert_array_equal(mixed[0][-1], images[-1])
            np.testing.assert_array_equal(mixed[1][-1], labels[-1])


def test_mixing_can_be_disabled():
    images, labels = make_batch(4)
    mixed, mixed_labels = mix(images, labels, (0, 0), 0, 0)
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(mixed_labels, labels)


def test_mixing_works_in_a_dataset():
    images, labels = make_batch(14)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    dataset = tf.data.Dataset.zip(dataset, tf.data.Dataset.range(4))
    dataset = dataset.map(lambda b, i: mix(*b, tf.stack([1, i]), 0.8, 1.0))
    for i, (mixed, mixed_labels) in enumerate(dataset):
        part = slice(4 * i, 4 * i + 4)
        expected = mix(
            images[part], labels[part], tf.constant([1, i], tf.int64), 0.8, 1.0
        )
        np.testing.assert_array_equal(mixed, expected[0])
        np.testing.assert_array_equal(mixed_labels, expected[1])
    assert dataset.element_spec[0].shape.as_list() == [None, 20, 30, 3]
