"""Tests of decoding and preprocessing against Pillow and simple NumPy code."""

import ctypes
import functools
import io
import itertools
import os
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from conftest import SHARED
from PIL import Image, ImageOps

from keras_resnet.data import pipelines, splits
from keras_resnet.data.augmentation import crop_and_flip
from keras_resnet.data.preprocessing import Preprocessing, channel_statistics
from keras_resnet.support.errors import InputError

# Largest allowed difference between the pixel values (0 to 255) of two JPEG decoders,
# which may round differently.
JPEG_TOLERANCE = 2
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def encode_image(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def encode(pixels, format, **options):
    if format == "JPEG":
        options = {"quality": 95, **options}
    return encode_image(Image.fromarray(pixels), format, **options)


def make_smooth_image(height, width):
    """Returns an image so smooth that different filters resample it similarly."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    return np.stack([x * 240, y * 240, (x + y) * 127], axis=-1).astype(np.uint8)


def make_noise(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def find_max_difference(image, expected):
    image, expected = np.asarray(image), np.asarray(expected)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    return np.abs(image.astype(int) - expected).max()


@pytest.fixture
def photograph():
    return make_smooth_image(300, 400)


def triangle_kernel(x):
    return max(1 - abs(x), 0)


def cubic_kernel(x):
    """Returns the cubic convolution kernel of Keys 1981 with a = -1/2."""
    a, x = -0.5, abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0


def compute_resampling_weights(kernel, old_size, new_size):
    """Returns an array (new, old) of the weight of each old pixel in each new pixel."""
    weights = np.zeros((new_size, old_size))
    filter_scale = max(old_size / new_size, 1)
    for i, j in itertools.product(range(new_size), range(old_size)):
        weights[i, j] = kernel(
            (j + 0.5 - (i + 0.5) * old_size / new_size) / filter_scale
        )
    return weights / weights.sum(axis=1, keepdims=True)


def resample(image, height, width, interpolation):
    kernel = {"bilinear": triangle_kernel, "bicubic": cubic_kernel}[interpolation]
    row_weights = compute_resampling_weights(kernel, image.shape[0], height)
    column_weights = compute_resampling_weights(kernel, image.shape[1], width)
    image = np.einsum(
        "ij,jkc,lk->ilc", row_weights, image.astype(np.float64), column_weights
    )
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)


def find_crop(image, height, width, crop):
    """Returns the sides of the resized image and the corner of the central crop.

    Values are rounded as in torchvision.
    """
    image_height, image_width = image.shape[:2]
    resized_height, resized_width = round(height / crop), round(width / crop)
    # One resized side has exactly the target length. The other side is rounded down.
    if resized_height * image_width >= resized_width * image_height:
        resized_size = resized_height, resized_height * image_width // image_height
    else:
        resized_size = resized_width * image_height // image_width, resized_width
    corner = round((resized_size[0] - height) / 2), round((resized_size[1] - width) / 2)
    return resized_size, corner


def crop_at(image, corner, height, width):
    top, left = corner
    return image[top : top + height, left : left + width]


def test_image_of_the_input_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    view = Preprocessing(32, 32, 3).view(image)
    np.testing.assert_array_equal(view, image)


# Height and width of the input, and crop fraction.
VIEW_CASES = [(224, 224, 0.875), (32, 32, 1.0), (24, 40, 0.8)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("sides", [(300, 400), (401, 301), (20, 27), (30, 500)])
@pytest.mark.parametrize(("height", "width", "crop"), VIEW_CASES)
def test_view_equals_pillow(height, width, crop, sides, interpolation):
    """The expected view is the centre of an image resized by Pillow."""
    image = make_smooth_image(*sides)
    (resized_height, resized_width), corner = find_crop(image, height, width, crop)
    resized = Image.fromarray(image).resize(
        (resized_width, resized_height), FILTERS[interpolation]
    )
    expected = crop_at(np.asarray(resized), corner, height, width)
    preprocessing = Preprocessing(height, width, 3, crop, interpolation)
    assert find_max_difference(preprocessing.view(image), expected) <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("sides", [(57, 90), (90, 57), (13, 19)])
def test_view_of_noise_equals_numpy(sides, interpolation):
    """Pillow is not the reference, because it clips values between its two passes.

    Clipping changes the result for noise, as bicubic interpolation of noise overshoots.
    """
    image = make_noise(*sides)
    for height, width, crop in ((32, 32, 0.875), (24, 40, 0.8)):
        size, corner = find_crop(image, height, width, crop)
        expected = crop_at(resample(image, *size, interpolation), corner, height, width)
        preprocessing = Preprocessing(height, width, 3, crop, interpolation)
        assert find_max_difference(preprocessing.view(image), expected) <= 1


def test_corner_of_the_crop_is_rounded_half_to_even():
    for columns, left in ((33, 0), (35, 2), (37, 2), (39, 4)):
        image = make_noise(32, columns)
        view = Preprocessing(32, 32, 3).view(image)
        np.testing.assert_array_equal(view, image[:, left : left + 32])


def test_margin_extends_the_view():
    image = make_smooth_image(300, 400)
    preprocessing = Preprocessing(56, 56, 3, 0.875)
    assert preprocessing.margin == 4
    crop, crop_with_margin = preprocessing.view(image), preprocessing.view(image, 4)
    assert crop_with_margin.shape == (64, 64, 3)
    assert find_max_difference(crop_with_margin[4:-4, 4:-4], crop) <= 1


def test_margin_is_the_border_outside_of_the_crop():
    assert Preprocessing(224, 224, 3, 0.875).margin == 16
    assert Preprocessing(32, 32, 3).margin == 0


@pytest.mark.parametrize(
    ("sides", "interpolation", "format"),
    [
        *itertools.product(
            [(300, 400), (401, 301), (20, 27), (2000, 30), (30, 2000)],
            FILTERS,
            ["JPEG"],
        ),
        ((20, 27), "bilinear", "PNG"),
    ],
)
def test_read_equals_view_of_decode(sides, interpolation, format):
    """The results are equal although `read` decodes only the visible part of a JPEG."""
    pixels = make_smooth_image(*sides) // 2 + make_noise(*sides) // 2
    encoded = encode(pixels, format)
    for height, width, channels in ((32, 32, 3), (24, 40, 1), (96, 80, 3)):
        preprocessing = Preprocessing(height, width, channels, 0.8, interpolation)
        decoded = preprocessing.decode(encoded)
        for margin in {0, 1, preprocessing.margin}:
            expected = preprocessing.view(decoded, margin)
            assert (
                find_max_difference(preprocessing.read(encoded, margin), expected) <= 1
            )


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}])
def test_read_of_unusual_jpegs_equals_view_of_decode(options):
    encoded = encode(make_noise(123, 217), "JPEG", **options)
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    expected = preprocessing.view(preprocessing.decode(encoded))
    assert find_max_difference(preprocessing.read(encoded), expected) <= 1


def test_read_of_a_jpeg_equals_pillow(photograph):
    encoded = encode(photograph, "JPEG")
    size, corner = find_crop(photograph, 224, 224, 0.875)
    resized = Image.open(io.BytesIO(encoded)).resize(size[::-1], FILTERS["bilinear"])
    expected = crop_at(np.asarray(resized), corner, 224, 224)
    result = Preprocessing(224, 224, 3, 0.875).read(encoded)
    assert find_max_difference(result, expected) <= JPEG_TOLERANCE


def make_image_files():
    """Returns a dict from names of image files of many kinds to their contents."""
    image = Image.fromarray(make_smooth_image(45, 64))
    translucent, palette = image.copy(), image.quantize(40)
    translucent.putalpha(Image.fromarray(make_smooth_image(45, 64)[..., 0] // 2 + 60))
    grey, black_and_white = image.convert("L"), image.convert("1")
    second_frame = palette.transpose(Image.Transpose.ROTATE_180)
    return {
        "png": encode_image(image, "PNG"),
        "grey.png": encode_image(grey, "PNG"),
        "palette.png": encode_image(palette, "PNG"),
        "palette_and_clear.png": encode_image(palette, "PNG", transparency=3),
        "alpha.png": encode_image(translucent, "PNG"),
        "grey_alpha.png": encode_image(translucent.convert("LA"), "PNG"),
        "black_and_white.png": encode_image(black_and_white, "PNG"),
        "bmp": encode_image(image, "BMP"),
        "grey.bmp": encode_image(grey, "BMP"),
        "alpha.bmp": encode_image(translucent, "BMP"),
        "palette.bmp": encode_image(palette, "BMP"),
        "webp": encode_image(image, "WEBP", lossless=True),
        "alpha.webp": encode_image(translucent, "WEBP", lossless=True, exact=True),
        "gif": encode_image(palette, "GIF"),
        "first_frame.gif": encode_image(
            palette, "GIF", save_all=True, append_images=[second_frame]
        ),
        "jpg": encode_image(image, "JPEG", quality=95),
        "progressive.jpg": encode_image(image, "JPEG", progressive=True),
        "grey.jpg": encode_image(grey, "JPEG", quality=95),
        "cmyk.jpg": encode_image(image.convert("CMYK"), "JPEG", quality=95),
    }


IMAGE_FILES = make_image_files()


@pytest.mark.parametrize("name", IMAGE_FILES)
def test_load_equals_pillow(tmp_path, name):
    """Alpha channels are ignored, as in `convert("RGB")` of Pillow."""
    encoded = IMAGE_FILES[name]
    path = tmp_path / f"a.{name}"
    path.write_bytes(encoded)
    tolerance = JPEG_TOLERANCE if name.endswith("jpg") else 0
    with Image.open(path) as image:
        colour, grey = np.asarray(image.convert("RGB")), image.convert("L")
    assert find_max_difference(Preprocessing(45, 64, 3).load(path), colour) <= tolerance
    # To convert to grey, Pillow rounds the weighted sum of R, G and B, and TensorFlow
    # truncates the sum.
    result = Preprocessing(45, 64, 1).load(str(path))
    assert find_max_difference(result, np.asarray(grey)[..., None]) <= tolerance + 1
    assert (
        find_max_difference(Preprocessing(45, 64, 3).read(encoded), colour) <= tolerance
    )


def compute_averaging_weights(old_size, new_size):
    """Returns an array (new, old) of the weights for averaging over areas."""
    weights = np.zeros((new_size, old_size))
    for i, j in itertools.product(range(new_size), range(old_size)):
        first, last = i * old_size / new_size, (i + 1) * old_size / new_size
        weights[i, j] = max(0, min(j + 1, last) - max(j, first))
    return weights / weights.sum(axis=1, keepdims=True)


def stretch(image, height, width):
    """Shrinks an image by averaging over areas, or enlarges an image bilinearly."""
    is_larger = image.shape[0] * image.shape[1] > height * width
    compute_bilinear_weights = functools.partial(
        compute_resampling_weights, triangle_kernel
    )
    compute_weights = (
        compute_averaging_weights if is_larger else compute_bilinear_weights
    )
    row_weights = compute_weights(image.shape[0], height)
    column_weights = compute_weights(image.shape[1], width)
    result = np.einsum(
        "ij,jkc,lk->ilc", row_weights, image.astype(np.float64), column_weights
    )
    return np.floor(result + 0.5).astype(np.uint8)


@pytest.mark.parametrize(
    "name",
    ["png", "grey.png", "palette.bmp", "alpha.webp", "jpg", "grey.jpg", "cmyk.jpg"],
)
def test_crop_and_resize_equals_numpy(name):
    """The first box is shrunk, the second only in height. The third box is enlarged.

    The fourth box is the whole image, which keeps its size.
    """
    encoded = IMAGE_FILES[name]
    colour = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    # The fast cosine transform that decodes JPEG files is less accurate than Pillow's.
    tolerance = 6 if name.endswith("jpg") else 1
    for size, box in (
        ((16, 16), (3, 7, 33, 41)),
        ((24, 40), (5, 0, 40, 30)),
        ((48, 48), (10, 20, 17, 31)),
        ((45, 64), (0, 0, 45, 64)),
    ):
        preprocessing = Preprocessing(*size, 3, 0.875)
        expected = stretch(crop_at(colour, box[:2], *box[2:]), *size)
        received_sides = []

        def find_box(sides, box=box, received_sides=received_sides):
            received_sides.append(sides)
            return tf.constant(box)

        result = preprocessing.crop_and_resize(tf.constant(encoded), find_box)
        assert find_max_difference(result, expected) <= tolerance
        assert all(np.array_equal(sides, (45, 64)) for sides in received_sides)
        result = preprocessing.crop_and_resize(tf.constant(colour), find_box)
        assert find_max_difference(result, expected) <= 1
        grey = Preprocessing(*size, 1).crop_and_resize(tf.constant(encoded), find_box)
        luma = expected @ [0.299, 0.587, 0.114]
        assert np.abs(np.asarray(grey)[..., 0] - luma).max() <= tolerance + 1


@pytest.mark.shared_data
def test_crop_and_resize_is_close_to_pillows_bilinear():
    """The difference is smaller than between Pillow's bicubic and bilinear filters."""
    folder = SHARED / "imagenet" / "jpeg100"
    differences, bicubic_differences = [], []
    for path in sorted(folder.glob("*.JPEG"))[:12]:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        for box_side in (side // 3, side // 2, side * 3 // 4):
            box = (10, 10, box_side, box_side)
            size = box_side * 3 // 4
            preprocessing = Preprocessing(size, size, 3, 0.875)
            result = preprocessing.crop_and_resize(
                tf.constant(np.asarray(image)), lambda _, box=box: tf.constant(box)
            )
            cropped_image = image.crop((10, 10, 10 + box_side, 10 + box_side))
            expected = np.asarray(
                cropped_image.resize((size, size), FILTERS["bilinear"]), int
            )
            bicubic_result = np.asarray(
                cropped_image.resize((size, size), FILTERS["bicubic"]), int
            )
            differences.append(np.abs(np.asarray(result, int) - expected).mean())
            bicubic_differences.append(np.abs(bicubic_result - expected).mean())
    assert np.mean(differences) < 0.75 * np.mean(bicubic_differences)
    assert np.mean(differences) < 2


def test_load_of_16_bit_grey_uses_the_higher_bits(tmp_path):
    y, x = np.mgrid[0:45, 0:64]
    pixels = (x * 1000 + y * 37).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    expected = (pixels // 256).astype(np.uint8)[..., None]
    result = Preprocessing(45, 64, 1).load(tmp_path / "deep.png")
    assert find_max_difference(result, expected) == 0
    result = Preprocessing(45, 64, 3).load(tmp_path / "deep.png")
    assert find_max_difference(result, np.repeat(expected, 3, axis=-1)) == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
def test_load_of_a_damaged_file_is_refused(tmp_path, photograph, suffix):
    format = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    encoded = encode(photograph, format)
    path = tmp_path / f"damaged.{suffix}"
    for damaged_content in (
        encoded[: len(encoded) // 2],
        encoded[:10],
        b"",
        b"Not a picture",
    ):
        path.write_bytes(damaged_content)
        with pytest.raises(InputError, match=f"damaged .*{path}") as error:
            Preprocessing(32, 32, 3, 0.875).load(path)
        assert "\n" not in str(error.value)


def test_load_of_missing_and_unsupported_files_is_refused(tmp_path, photograph):
    with pytest.raises(FileNotFoundError):
        Preprocessing(32, 32, 3).load(tmp_path / "missing.jpg")
    os.mkfifo(tmp_path / "pipe.png")  # Opening it would wait forever.
    for special_path in (tmp_path, tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(InputError, match=f"regular file .*{special_path}"):
            Preprocessing(32, 32, 3).load(special_path)
    path = tmp_path / "picture.tiff"
    Image.fromarray(photograph).save(path)
    with pytest.raises(InputError, match=f"not a JPEG, PNG, WebP.*{path}"):
        Preprocessing(32, 32, 3).load(path)


def change_header(content, offset, format, *numbers):
    """Returns a file whose header contains other numbers at an offset."""
    new_bytes = struct.pack(format, *numbers)
    return content[:offset] + new_bytes + content[offset + len(new_bytes) :]


def make_too_large_files():
    """Yields files of small images whose headers declare other sides, and the sides."""
    pixels = make_noise(8, 8)
    jpeg, png, gif = (encode(pixels, name) for name in ("JPEG", "PNG", "GIF"))
    yield change_header(png, 16, ">II", 60_000, 50_000), 60_000, 50_000
    yield change_header(png, 16, ">II", 11_586, 11_586), 11_586, 11_586
    start = jpeg.index(b"\xff\xc0") + 5
    yield change_header(jpeg, start, ">HH", 40_000, 65_500), 65_500, 40_000
    yield change_header(gif, 6, "<HH", 65_535, 2049), 65_535, 2049
    vp8, vp8l = encode(pixels, "WEBP"), encode(pixels, "WEBP", lossless=True)
    yield change_header(vp8, 26, "<HH", 16_000, 16_383), 16_000, 16_383
    packed_sides = 16_382 | 8999 << 14
    yield change_header(vp8l, 21, "<I", packed_sides), 16_383, 9000
    vp8x = encode(np.dstack([pixels, pixels[..., 0]]), "WEBP")  # With transparency.
    vp8x = change_header(vp8x, 24, "<HBHB", 16_383, 0, 16_000, 0)
    yield vp8x, 16_384, 16_001


@pytest.mark.parametrize(
    ("content", "width", "height"),
    list(make_too_large_files()),
    ids=["png", "square", "jpeg", "gif", "webp", "lossless", "extended"],
)
def test_too_large_images_are_refused_with_their_size(tmp_path, content, width, height):
    path = tmp_path / "large"
    path.write_bytes(content)
    message = f"has {width} x {height} pixels; at most 134,217,728 are .*{path}"
    with pytest.raises(InputError, match=message):
        Preprocessing(32, 32, 3).load(path)


def test_too_large_images_are_refused_in_pipelines():
    preprocessing = Preprocessing(32, 32, 1)
    contents = [content for content, *_ in make_too_large_files()]
    dataset = tf.data.Dataset.from_tensor_slices(contents[1:3])  # A PNG and a JPEG.
    for function in (
        lambda encoded: preprocessing.read(encoded, upright=False),
        lambda encoded: preprocessing.crop_and_resize(
            encoded, lambda sides: tf.constant([0, 0, 8, 8])
        ),
    ):
        batches = iter(dataset.map(function))
        for _ in range(2):
            with pytest.raises(tf.errors.InvalidArgumentError, match="pixels"):
                next(batches)


def write_png(path, height, width):
    compressor, row = zlib.compressobj(1), bytes(3 * width + 1)
    content = b"".join(compressor.compress(row) for _ in range(height))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, chunk in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            (b"IDAT", content + compressor.flush()),
            (b"IEND", b""),
        ):
            checksum = struct.pack(">I", zlib.crc32(name + chunk))
            file.write(struct.pack(">I", len(chunk)) + name + chunk + checksum)


def measure_peak(function):
    """Returns by how many MB the memory of this process grows while a function runs."""

    def read_peak():
        status = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1000

    ctypes.CDLL(None).malloc_trim(0)  # Returns memory that earlier tests have freed.
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
    old_peak = read_peak()
    function()
    return read_peak() - old_peak


def test_too_large_images_take_no_memory(tmp_path):
    def load_large_image():
        with pytest.raises(InputError, match="12000 x 12000 pixels"):
            Preprocessing(32, 32, 3).load(tmp_path / "large.png")

    write_png(tmp_path / "large.png", 12_000, 12_000)
    write_png(tmp_path / "small.png", 11_000, 12_000)
    load_small_image = functools.partial(
        Preprocessing(32, 32, 3).load, tmp_path / "small.png"
    )
    # The pixels take 396 MB, but memory that earlier tests have freed may be used again.
    assert measure_peak(load_small_image) > 150
    assert measure_peak(load_large_image) < 20


def test_load_of_an_animated_webp_is_refused(tmp_path, photograph):
    """Decoding the file with 0 channels makes TensorFlow 2.21 write beyond a buffer."""
    frames = [Image.fromarray(photograph[:45, :64] + i) for i in range(2)]
    path = tmp_path / "animated.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(ValueError, match=str(path)):
        Preprocessing(45, 64, 3).load(path)


# `struct` formats of the TIFF field types 3 (SHORT) and 4 (LONG).
FIELD_FORMATS = {3: "Hxx", 4: "I"}


def make_tiff_directory(byte_order, entries, offset, has_next_directory=0, text=b""):
    """Returns a TIFF directory with entries (tag, type, count, value), then `text`.

    The directory begins at byte `offset`. If `has_next_directory`, the directory
    points to a second directory, which follows the text.
    """
    directory = struct.pack(f"{byte_order}H", len(entries))
    for tag, field_type, count, value in entries:
        field = (
            value
            if field_type == 2
            else struct.pack(f"{byte_order}{FIELD_FORMATS[field_type]}", value)
        )
        directory += struct.pack(f"{byte_order}HHI", tag, field_type, count) + field
    next_offset = offset + len(directory) + 4 + len(text)
    return (
        directory
        + struct.pack(f"{byte_order}I", next_offset if has_next_directory else 0)
        + text
    )


def insert_exif(
    encoded, byte_order, orientation, has_text=False, thumbnail_orientation=None
):
    """Inserts an EXIF segment (EXIF 2.3, TIFF 6.0) into a JPEG file.

    `byte_order` is "<" or ">". `thumbnail_orientation` is stored in a second TIFF
    directory, which describes the thumbnail.
    """
    entries = [] if orientation is None else [(0x0112, 3, 1, orientation)]
    text = b""
    if has_text:  # A text field contains the offset of its text.
        text = b"Camera maker\0\0"
        text_offset = 8 + 2 + 12 * (len(entries) + 3) + 4
        entries = [
            (0x0100, 4, 1, 4000),
            (0x010F, 2, len(text), struct.pack(f"{byte_order}I", text_offset)),
            *entries,
            (0x0128, 3, 1, 2),
        ]
    tiff = b"II*\0" if byte_order == "<" else b"MM\0*"
    tiff += struct.pack(f"{byte_order}I", 8)
    tiff += make_tiff_directory(
        byte_order, entries, 8, thumbnail_orientation is not None, text
    )
    if thumbnail_orientation is not None:
        tiff += make_tiff_directory(
            byte_order,
            [(0x0103, 3, 1, 6), (0x0112, 3, 1, thumbnail_orientation)],
            len(tiff),
        )
    segment = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return encoded[:2] + segment + encoded[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_exif_orientation_equals_pillow(byte_order, orientation):
    encoded = encode(make_smooth_image(60, 80), "JPEG")
    preprocessing = Preprocessing(40, 32, 3, 0.875)
    for has_text, thumbnail_orientation in (
        (False, None),
        (True, None),
        (True, 9 - orientation),
    ):
        file = insert_exif(
            encoded, byte_order, orientation, has_text, thumbnail_orientation
        )
        image = Image.open(io.BytesIO(file))
        assert image.getexif()[0x0112] == orientation
        expected = np.asarray(ImageOps.exif_transpose(image))
        upright_image = preprocessing.decode(file)
        assert find_max_difference(upright_image, expected) <= JPEG_TOLERANCE
    view = preprocessing.view(upright_image)
    assert find_max_difference(preprocessing.read(file), view) <= 1


def test_orientation_of_dataset_images_is_ignored():
    """Images of datasets are not rotated."""
    encoded = encode(make_smooth_image(60, 80), "JPEG")
    stored_image = np.asarray(Image.open(io.BytesIO(encoded)))
    files = [insert_exif(encoded, "<", orientation) for orientation in range(1, 9)]
    preprocessing = Preprocessing(40, 32, 3, 0.875)
    split = splits.Split(np.array(files, object), np.zeros(8, np.int32))
    view = preprocessing.view(stored_image)
    for loaded_view in pipelines.load_views(split, preprocessing):
        assert find_max_difference(loaded_view, view) <= JPEG_TOLERANCE
    for file in files[2], files[5]:
        image = preprocessing.decode(file, upright=False)
        assert find_max_difference(image, stored_image) <= JPEG_TOLERANCE


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", [0, 9, 256, 65535])
def test_invalid_exif_orientation_is_ignored(photograph, byte_order, orientation):
    file = insert_exif(encode(photograph, "JPEG"), byte_order, orientation)
    result = Preprocessing(32, 32, 3).decode(file)
    assert (
        find_max_difference(result, np.asarray(Image.open(io.BytesIO(file))))
        <= JPEG_TOLERANCE
    )


def test_orientation_outside_of_an_exif_block_is_ignored(photograph):
    """The file has an orientation in a JPEG comment and after the end of the data."""
    encoded = encode(photograph, "JPEG")
    for byte_order, header in (("<", b"II*\0"), (">", b"MM\0*")):
        tag = header + struct.pack(f"{byte_order}HHIHH", 0x0112, 3, 1, 6, 0)
        comment = b"\xff\xfe" + struct.pack(">H", len(tag) + 2) + tag
        file = encoded[:2] + comment + encoded[2:] + tag
        result = Preprocessing(32, 32, 3).decode(file)
        assert (
            find_max_difference(result, np.asarray(Image.open(io.BytesIO(file)))) <= 2
        )


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("has_text", [False, True])
def test_orientation_of_the_thumbnail_is_ignored(photograph, byte_order, has_text):
    file = insert_exif(
        encode(photograph, "JPEG"), byte_order, None, has_text, thumbnail_orientation=6
    )
    image = Image.open(io.BytesIO(file))
    assert 0x0112 not in image.getexif()
    result = Preprocessing(32, 32, 3).decode(file)
    assert find_max_difference(result, np.asarray(image)) <= JPEG_TOLERANCE


def assert_same_crops(crops, square, side, corners, tolerance):
    """Asserts that `crops` are the crops of `square` at the five `corners`.

    Each crop and its mirror image are expected. The order of crops does not matter.
    """
    expected = [crop_at(square, corner, side, side) for corner in corners]
    expected += [crop[:, ::-1] for crop in expected]
    assert len(crops) == 10
    matches = [
        [i for i in range(10) if find_max_difference(crops[i], crop) <= tolerance]
        for crop in expected
    ]
    assert sorted(matches) == [[i] for i in range(10)]


def test_ten_crops_are_taken_from_the_central_square(photograph):
    """A photograph is resized to 341x256 pixels. The square has 256x256 pixels."""
    resized = Image.fromarray(photograph).resize((341, 256), FILTERS["bilinear"])
    square = np.asarray(resized)[:, 42:298]
    crops = np.asarray(Preprocessing(224, 224, 3, 0.875).ten_crops(photograph))
    assert crops.shape == (10, 224, 224, 3)
    corners = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    assert_same_crops(crops, square, 224, corners, 1)


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.95])
def test_ten_crops_do_not_depend_on_the_crop_fraction(crop):
    image = make_noise(64, 64)
    crops = np.asarray(Preprocessing(56, 56, 3, crop).ten_crops(image))
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    assert_same_crops(crops, image, 56, corners, 0)


def test_ten_crops_are_exact_for_a_square_with_an_odd_side():
    """The side of the square is 37 pixels, as 32 * 256 / 224 = 36.57 is rounded."""
    image = make_noise(37, 37)
    crops = np.asarray(Preprocessing(32, 32, 3).ten_crops(image))
    corners = [(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]
    assert_same_crops(crops, image, 32, corners, 0)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("sides", "shorter_side", "expected"),
    [
        ((300, 400), 224, (224, 298)),  # 298.67 is truncated.
        ((400, 300), 480, (640, 480)),
        ((333, 500), 256, (256, 384)),  # 384.38 is truncated.
        ((500, 375), 384, (512, 384)),
        ((20, 27), 64, (64, 86)),  # 86.4 is truncated.
        ((50, 50), 37, (37, 37)),
        ((1000, 30), 32, (1066, 32)),  # 1066.67 is truncated.
    ],
)
def test_resize_shorter_side_equals_pillow(
    sides, shorter_side, expected, interpolation
):
    image = make_smooth_image(*sides)
    resized = Image.fromarray(image).resize(expected[::-1], FILTERS[interpolation])
    preprocessing = Preprocessing(224, 224, 3, 0.875, interpolation)
    result = preprocessing.resize_shorter_side(image, shorter_side)
    assert find_max_difference(result, np.asarray(resized)) <= 1


def test_resize_shorter_side_equals_numpy():
    for interpolation in FILTERS:
        image = make_noise(50, 71)
        preprocessing = Preprocessing(32, 32, 3, 0.875, interpolation)
        for shorter_side in (24, 64):
            size = shorter_side, shorter_side * 71 // 50
            expected = resample(image, *size, interpolation)
            resized = preprocessing.resize_shorter_side(image, shorter_side)
            assert find_max_difference(resized, expected) <= 1


def test_resized_sides_are_exact_for_every_aspect_ratio():
    """Rounding errors in the scale do not make the resized image a pixel smaller.

    In float64, 11 * (49 / 11) and 22 * (49 / 22) are less than 49.
    """
    for shorter_side, longer_side in itertools.product((11, 22, 300), (300, 301, 1001)):
        image = tf.zeros((shorter_side, longer_side, 1), tf.uint8)
        preprocessing = Preprocessing(32, 32, 1)
        expected = (49, 49 * longer_side // shorter_side, 1)
        assert preprocessing.resize_shorter_side(image, 49).shape == expected


@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_flip_equals_slicing(flip):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (50, 12, 14, 2), np.uint8)
    draws = random.random((50, 3), np.float32)
    crops = np.asarray(crop_and_flip(images, (8, 9), draws, flip))
    num_mirrored = 0
    for image, (y_draw, x_draw, mirror_draw), crop in zip(
        images, draws, crops, strict=True
    ):
        top, left = int(y_draw * 5), int(x_draw * 6)
        expected = image[top : top + 8, left : left + 9]
        if flip and mirror_draw >= 0.5:
            expected, num_mirrored = expected[:, ::-1], num_mirrored + 1
        np.testing.assert_array_equal(crop, expected)
    assert 10 < num_mirrored < 40 if flip else num_mirrored == 0


def test_channel_statistics_equal_numpy():
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)
    images[..., 2] = 7
    mean, variance = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        variance[:2], images[..., :2].var(axis=(0, 1, 2)), rtol=1e-9
    )
    assert variance[2] == 1
