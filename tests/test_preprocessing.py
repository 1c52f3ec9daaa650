import io

import numpy as np
import pytest
from PIL import Image

from keras_resnet.preprocessing import Preprocessing, crop_and_flip, statistics


def encode(pixels, format):
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, format, **({"quality": 95} if format == "JPEG" else {})
    )
    return file.getvalue()


@pytest.fixture
def photograph():
    """A smooth picture, on which resampling filters agree."""
    y, x = np.mgrid[0:300, 0:400]
    return np.stack([x * 0.6, y * 0.8, (x + y) / 3], axis=-1).astype(np.uint8)


def test_an_image_of_the_right_size_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    view = Preprocessing(32, 32, 3).view(image)
    np.testing.assert_array_equal(view, image)


@pytest.mark.parametrize(
    ("height", "width", "crop"), [(224, 224, 0.875), (32, 32, 1.0), (24, 40, 0.8)]
)
def test_view_equals_pillows(photograph, height, width, crop):
    """Resized until it covers the input over `crop`; the centre of that."""
    rows, columns = photograph.shape[:2]
    scale = max(height / crop / rows, width / crop / columns)
    size = round(columns * scale), round(rows * scale)
    resized = np.asarray(
        Image.fromarray(photograph).resize(size, Image.Resampling.BILINEAR)
    )
    top, left = (resized.shape[0] - height) // 2, (resized.shape[1] - width) // 2
    expected = resized[top : top + height, left : left + width]
    view = np.asarray(Preprocessing(height, width, 3, crop).view(photograph))
    assert view.dtype == np.uint8
    assert view.shape == (height, width, 3)
    assert np.abs(view.astype(int) - expected).max() <= 1


def test_the_papers_view_of_a_photograph_keeps_224_of_256():
    assert Preprocessing(224, 224, 3, 0.875).margin == 16
    assert Preprocessing(32, 32, 3).margin == 0


@pytest.mark.parametrize("format", ["PNG", "BMP", "JPEG"])
def test_decode(photograph, format):
    decoded = np.asarray(Preprocessing(32, 32, 3).decode(encode(photograph, format)))
    assert np.abs(decoded.astype(int) - photograph).max() <= (
        0 if format != "JPEG" else 12
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_grey_to_colour_and_back(photograph, format):
    grey = photograph[..., 0]
    colour = np.asarray(Preprocessing(32, 32, 3).decode(encode(grey, format)))
    assert colour.shape == (300, 400, 3)
    assert np.abs(colour.astype(int) - grey[..., None]).max() <= 12
    assert Preprocessing(32, 32, 1).decode(encode(photograph, format)).shape == (
        300,
        400,
        1,
    )


@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_equals_slicing(flip):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 12, 14, 2), np.uint8)
    draws = random.random((50, 3), np.float32)
    found = np.asarray(crop_and_flip(images, (8, 9), draws, flip))
    mirrored = 0
    for image, (down, right, mirror), result in zip(images, draws, found, strict=True):
        top, left = int(down * 5), int(right * 6)
        expected = image[top : top + 8, left : left + 9]
        if flip and mirror >= 0.5:
            expected, mirrored = expected[:, ::-1], mirrored + 1
        np.testing.assert_array_equal(result, expected)
    assert 10 < mirrored < 40 if flip else mirrored == 0


def test_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)
    images[..., 2] = 7
    mean, variance = statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        variance[:2], images[..., :2].var(axis=(0, 1, 2)), rtol=1e-9
    )
    assert variance[2] == 1
