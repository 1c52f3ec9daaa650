"""Random crops of training images."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from test_augmentation import SEEDS, SIDES
from test_pipelines import take_batches, take_digit_batches
from test_preprocessing import encode

from keras_resnet.data.augmentation import draw_shorter_side_box
from keras_resnet.data.splits import Split
from keras_resnet.data.training_images import _draw_paper_box


def test_padded_crops_are_shifted_by_one_pixel(digits):
    """The padding is an eighth of the 8 pixels, and is black."""
    images, labels, _ = take_digit_batches(digits, 0, 1)[0]
    crops = {}
    for image, label in zip(digits.train.images, digits.train.labels, strict=True):
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        for y in range(3):
            for x in range(3):
                crops[padded[y : y + 8, x : x + 8].tobytes()] = label, (y, x)
    matches = [crops[image.tobytes()] for image in images]
    assert [label for label, _ in matches] == labels.tolist()
    assert len({offset for _, offset in matches}) == 9


def test_padding_and_erased_boxes_of_a_wide_image():
    """The padding is a quarter of the height, 2 pixels. Boxes have the mean colour."""
    split = Split(np.full((40, 8, 16, 3), 255, np.uint8), np.zeros(40, np.int32))
    ((images, _, _),) = take_batches(
        split, 0, 1, crop="pad", pad=1 / 4, erase=1.0, batch_size=40, size=(8, 16)
    )
    mean = (90, 100, 110)
    colours = set(map(tuple, images.reshape(-1, 3).tolist()))
    assert colours == {(255, 255, 255), (0, 0, 0), mean}
    is_black = (images == 0).all(-1)
    num_rows, num_columns = is_black.all(2).sum(1), is_black.all(1).sum(1)
    assert set(num_rows) == set(num_columns) == {0, 1, 2}


def make_gradient(height, width):
    """Returns an image in which red grows from left to right and green downwards.

    Red and green grow from 0 to 240. Blue is 60.
    """
    y, x = (np.mgrid[0:height, 0:width] + 0.5) / [[[height]], [[width]]]
    return np.stack([x * 240, y * 240, 0 * x + 60], -1).round().astype(np.uint8)


def measure_interval(positions):
    """Returns the interval that equidistant pixels cover, given the outermost centres.

    The ends are half a pixel outside of the centres of the outermost pixels.
    """
    first, last = sorted(positions[[0, -1]])
    half_pixel = (last - first) / (len(positions) - 1) / 2
    return first - half_pixel, last + half_pixel


def measure_box(image, height, width):
    """Finds the box that a crop of a `make_gradient` image shows, using the colours.

    Returns:
        The box (top, left, bottom, right) in pixels, and whether the crop is mirrored.
    """
    row_positions, column_positions = image[..., 1].mean(1), image[..., 0].mean(0)
    top, bottom = np.multiply(measure_interval(row_positions), height / 240)
    left, right = np.multiply(measure_interval(column_positions), width / 240)
    is_mirrored = column_positions[0] > column_positions[-1]
    return np.array([top, left, bottom, right]), is_mirrored


@pytest.mark.parametrize(
    ("crop", "kind", "sides"),
    [
        ("inception", "JPEG", (120, 160)),
        ("shorter_side", "arrays", (120, 160)),
        ("shorter_side", "PNG", (20, 18)),  # The image is smaller than the crop.
    ],
)
def test_crops_show_plausible_boxes(crop, kind, sides):
    """The boxes that random crops show are measured by `measure_box`."""
    image = make_gradient(*sides)
    if kind == "arrays":
        images = np.stack([image] * 40)
    else:
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        images = np.array([encode(image, kind, **options)] * 40, object)
    crop_side = 32
    ((images, _, _),) = take_batches(
        Split(images, np.zeros(40, np.int32)), 0, 1,
        crop=crop, batch_size=40, size=(crop_side, crop_side),
    )  # fmt: skip
    assert images.shape == (40, crop_side, crop_side, 3)
    measurements = [measure_box(image, *sides) for image in images]
    boxes = np.array([box for box, _ in measurements])
    assert 5 < sum(is_mirrored for _, is_mirrored in measurements) < 35
    tolerance = 1.5 + 0.02 * max(sides)
    assert (boxes[:, :2] >= -tolerance).all()
    assert (boxes[:, 2:] <= np.array(sides) + tolerance).all()
    height, width = (boxes[:, 2:] - boxes[:, :2]).T
    assert height.std() > 0.02 * sides[0]
    if crop == "inception":
        area_fractions = height * width / np.prod(sides)
        assert area_fractions.min() > 0.03
        assert area_fractions.max() > 0.7
        if min(sides) > 100:
            aspect_ratios = width / height
            assert (aspect_ratios > 0.6).all()
            assert (aspect_ratios < 1.6).all()
    else:
        # The shorter side is resized to between 256/224 and 480/224 of the crop's side.
        max_length, min_length = (
            min(sides) * 224 / shorter_side for shorter_side in (256, 480)
        )
        for lengths in (height, width):
            assert (lengths < max_length + tolerance).all()
            assert (lengths > min_length - tolerance).all()


@given(SIDES, SEEDS, st.integers(1, 300))
def test_boxes_are_rounded_to_whole_pixels_inside_the_image(sides, seed, size):
    sides = tf.constant(sides)
    exact_box = draw_shorter_side_box(sides, seed, (size, size)).numpy()
    y, x, height, width = _draw_paper_box(sides, seed, (size, size)).numpy()
    assert 0 <= y < y + height <= sides[0]
    assert 0 <= x < x + width <= sides[1]
    difference = np.subtract([y, x, height, width], exact_box)
    assert np.abs(difference).max() <= 1
