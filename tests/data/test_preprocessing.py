"""Reading, resizing and cropping, against Pillow and NumPy written slowly."""

import functools
import io
import itertools
import struct

import numpy as np
import pytest
import tensorflow as tf
from conftest import SHARED
from PIL import Image, ImageOps

from keras_resnet.data import pipelines, splits
from keras_resnet.data.augmentation import crop_and_flip
from keras_resnet.data.preprocessing import Preprocessing, channel_statistics

# Two decoders of JPEG may round differently; those of lossless formats may not.
JPEG_LEVELS = 2
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def save(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def encode(pixels, format, **options):
    if format == "JPEG":
        options = {"quality": 95, **options}
    return save(Image.fromarray(pixels), format, **options)


def picture(height, width):
    """A smooth picture, on which resampling filters agree."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    return np.stack([x * 240, y * 240, (x + y) * 127], axis=-1).astype(np.uint8)


def noise(height, width, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def difference(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    return np.abs(found.astype(int) - expected).max()


@pytest.fixture
def photograph():
    return picture(300, 400)


def triangle(x):
    return max(1 - abs(x), 0)


def keys(x):
    """Keys 1981, with a = -1/2."""
    a, x = -0.5, abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0


def resampling(kernel, old, new):
    """Weights (new, old) of the pixels of a line in each pixel of another."""
    weights = np.zeros((new, old))
    wider = max(old / new, 1)
    for i, j in itertools.product(range(new), range(old)):
        weights[i, j] = kernel((j + 0.5 - (i + 0.5) * old / new) / wider)
    return weights / weights.sum(axis=1, keepdims=True)


def resampled(image, height, width, interpolation):
    kernel = {"bilinear": triangle, "bicubic": keys}[interpolation]
    down = resampling(kernel, image.shape[0], height)
    across = resampling(kernel, image.shape[1], width)
    image = np.einsum("ij,jkc,lk->ilc", down, image.astype(np.float64), across)
    return np.floor(np.clip(image, 0, 255) + 0.5).astype(np.uint8)


def covering(image, height, width, crop):
    """Sides of a resized image, and the corner of the crop: torchvision's rounding."""
    rows, columns = image.shape[:2]
    tall, wide = round(height / crop), round(width / crop)
    # As fractions: the side that just fits is exact, the other one truncated.
    if tall * columns >= wide * rows:
        size = tall, tall * columns // rows
    else:
        size = wide * rows // columns, wide
    corner = round((size[0] - height) / 2), round((size[1] - width) / 2)
    return size, corner


def cut(image, corner, height, width):
    top, left = corner
    return image[top : top + height, left : left + width]


def test_an_image_of_the_right_size_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    view = Preprocessing(32, 32, 3).view(image)
    np.testing.assert_array_equal(view, image)


SIZES = [(224, 224, 0.875), (32, 32, 1.0), (24, 40, 0.8)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("sides", [(300, 400), (401, 301), (20, 27), (30, 500)])
@pytest.mark.parametrize(("height", "width", "crop"), SIZES)
def test_view_equals_pillows(height, width, crop, sides, interpolation):
    """Resized until it covers the input over `crop`; the centre of that."""
    image = picture(*sides)
    (tall, wide), corner = covering(image, height, width, crop)
    resized = Image.fromarray(image).resize((wide, tall), FILTERS[interpolation])
    expected = cut(np.asarray(resized), corner, height, width)
    preprocessing = Preprocessing(height, width, 3, crop, interpolation)
    assert difference(preprocessing.view(image), expected) <= 1


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("sides", [(57, 90), (90, 57), (13, 19)])
def test_view_of_noise_equals_numpys(sides, interpolation):
    """Pillow clips bicubic's overshoot between its two passes; this does not."""
    image = noise(*sides)
    for height, width, crop in ((32, 32, 0.875), (24, 40, 0.8)):
        size, corner = covering(image, height, width, crop)
        expected = cut(resampled(image, *size, interpolation), corner, height, width)
        preprocessing = Preprocessing(height, width, 3, crop, interpolation)
        assert difference(preprocessing.view(image), expected) <= 1


def test_the_crops_corner_is_rounded_half_to_even():
    for columns, left in ((33, 0), (35, 2), (37, 2), (39, 4)):
        image = noise(32, columns)
        view = Preprocessing(32, 32, 3).view(image)
        np.testing.assert_array_equal(view, image[:, left : left + 32])


def test_view_with_a_margin():
    image = picture(300, 400)
    preprocessing = Preprocessing(56, 56, 3, 0.875)
    assert preprocessing.margin == 4
    inner, outer = preprocessing.view(image), preprocessing.view(image, 4)
    assert outer.shape == (64, 64, 3)
    assert difference(outer[4:-4, 4:-4], inner) <= 1


def test_the_papers_view_of_a_photograph_keeps_224_of_256():
    assert Preprocessing(224, 224, 3, 0.875).margin == 16
    assert Preprocessing(32, 32, 3).margin == 0


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    "sides", [(300, 400), (401, 301), (20, 27), (2000, 30), (30, 2000)]
)
def test_read_equals_view_of_decode(sides, interpolation, format):
    """Though of a JPEG only the part under the crop is decoded."""
    mixed = picture(*sides) // 2 + noise(*sides) // 2
    encoded = encode(mixed, format)
    for height, width, channels in ((32, 32, 3), (24, 40, 1), (96, 80, 3)):
        preprocessing = Preprocessing(height, width, channels, 0.8, interpolation)
        decoded = preprocessing.decode(encoded)
        for margin in {0, 1, preprocessing.margin}:
            expected = preprocessing.view(decoded, margin)
            assert difference(preprocessing.read(encoded, margin), expected) <= 1


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}])
def test_read_of_other_jpegs_equals_view_of_decode(options):
    encoded = encode(noise(123, 217), "JPEG", **options)
    preprocessing = Preprocessing(32, 32, 3, 0.875)
    expected = preprocessing.view(preprocessing.decode(encoded))
    assert difference(preprocessing.read(encoded), expected) <= 1


def test_read_equals_pillows_of_a_jpeg(photograph):
    encoded = encode(photograph, "JPEG")
    size, corner = covering(photograph, 224, 224, 0.875)
    resized = Image.open(io.BytesIO(encoded)).resize(size[::-1], FILTERS["bilinear"])
    expected = cut(np.asarray(resized), corner, 224, 224)
    found = Preprocessing(224, 224, 3, 0.875).read(encoded)
    assert difference(found, expected) <= JPEG_LEVELS


def picture_files():
    """Name, encoded file, and what Pillow reads of it in colour."""
    image = Image.fromarray(picture(45, 64))
    half_clear, palette = image.copy(), image.quantize(40)
    half_clear.putalpha(Image.fromarray(picture(45, 64)[..., 0] // 2 + 60))
    grey, black_and_white = image.convert("L"), image.convert("1")
    turned = palette.transpose(Image.Transpose.ROTATE_180)
    files = {
        "png": save(image, "PNG"),
        "grey.png": save(grey, "PNG"),
        "palette.png": save(palette, "PNG"),
        "palette_and_clear.png": save(palette, "PNG", transparency=3),
        "alpha.png": save(half_clear, "PNG"),
        "grey_alpha.png": save(half_clear.convert("LA"), "PNG"),
        "black_and_white.png": save(black_and_white, "PNG"),
        "bmp": save(image, "BMP"),
        "grey.bmp": save(grey, "BMP"),
        "alpha.bmp": save(half_clear, "BMP"),
        "palette.bmp": save(palette, "BMP"),
        "webp": save(image, "WEBP", lossless=True),
        "alpha.webp": save(half_clear, "WEBP", lossless=True, exact=True),
        "gif": save(palette, "GIF"),
        "first_frame.gif": save(palette, "GIF", save_all=True, append_images=[turned]),
        "jpg": save(image, "JPEG", quality=95),
        "progressive.jpg": save(image, "JPEG", progressive=True),
        "grey.jpg": save(grey, "JPEG", quality=95),
        "cmyk.jpg": save(image.convert("CMYK"), "JPEG", quality=95),
    }
    for name, encoded in files.items():
        yield pytest.param(name, encoded, id=name)


@pytest.mark.parametrize(("name", "encoded"), list(picture_files()))
def test_load_equals_pillow(tmp_path, name, encoded):
    """Alpha is left out, as by Pillow's convert."""
    path = tmp_path / f"a.{name}"
    path.write_bytes(encoded)
    levels = JPEG_LEVELS if name.endswith("jpg") else 0
    with Image.open(path) as image:
        colour, grey = np.asarray(image.convert("RGB")), image.convert("L")
    assert difference(Preprocessing(45, 64, 3).load(path), colour) <= levels
    # Pillow rounds the weighted sum of the colours, TensorFlow truncates it.
    found = Preprocessing(45, 64, 1).load(str(path))
    assert difference(found, np.asarray(grey)[..., None]) <= levels + 1
    assert difference(Preprocessing(45, 64, 3).read(encoded), colour) <= levels


def averaging(old, new):
    """Weights (new, old): the share of each pixel in the mean that is a new one."""
    weights = np.zeros((new, old))
    for i, j in itertools.product(range(new), range(old)):
        first, last = i * old / new, (i + 1) * old / new
        weights[i, j] = max(0, min(j + 1, last) - max(j, first))
    return weights / weights.sum(axis=1, keepdims=True)


def stretched(part, height, width):
    """Means where there are more pixels than wanted, else bilinear; by hand."""
    shrinks = part.shape[0] * part.shape[1] > height * width
    weights = averaging if shrinks else functools.partial(resampling, triangle)
    down, across = weights(part.shape[0], height), weights(part.shape[1], width)
    found = np.einsum("ij,jkc,lk->ilc", down, part.astype(np.float64), across)
    return np.floor(found + 0.5).astype(np.uint8)


@pytest.mark.parametrize(("name", "encoded"), list(picture_files()))
def test_cut_equals_decoding_slicing_and_resizing(name, encoded):
    """Of any file; shrinking, in one direction only, enlarging, and as it is."""
    colour = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    # The quick cosine transform may differ by some levels.
    levels = 6 if name.endswith("jpg") else 1
    for size, box in (
        ((16, 16), (3, 7, 33, 41)),
        ((24, 40), (5, 0, 40, 30)),
        ((48, 48), (10, 20, 17, 31)),
        ((45, 64), (0, 0, 45, 64)),
    ):
        preprocessing = Preprocessing(*size, 3, 0.875)
        expected = stretched(cut(colour, box[:2], *box[2:]), *size)
        sides = []

        def box_of(found, box=box, sides=sides):
            sides.append(found)
            return tf.constant(box)

        found = preprocessing.cut(tf.constant(encoded), box_of)
        assert difference(found, expected) <= levels
        assert all(np.array_equal(each, (45, 64)) for each in sides)
        found = preprocessing.cut(tf.constant(colour), box_of)
        assert difference(found, expected) <= 1
        grey = Preprocessing(*size, 1).cut(tf.constant(encoded), box_of)
        luma = expected @ [0.299, 0.587, 0.114]
        assert np.abs(np.asarray(grey)[..., 0] - luma).max() <= levels + 1


@pytest.mark.shared_data
def test_cut_is_near_pillows_bilinear():
    """Nearer than Pillow's own filters are to each other, over usual scales."""
    folder = SHARED / "imagenet" / "jpeg100"
    ours, bicubic = [], []
    for path in sorted(folder.glob("*.JPEG"))[:12]:
        image = Image.open(path).convert("RGB")
        side = min(image.size)
        for shorter in (side // 3, side // 2, side * 3 // 4):
            box = (10, 10, shorter, shorter)
            size = shorter * 3 // 4
            preprocessing = Preprocessing(size, size, 3, 0.875)
            found = preprocessing.cut(
                tf.constant(np.asarray(image)), lambda _, box=box: tf.constant(box)
            )
            part = image.crop((10, 10, 10 + shorter, 10 + shorter))
            theirs = np.asarray(part.resize((size, size), FILTERS["bilinear"]), int)
            other = np.asarray(part.resize((size, size), FILTERS["bicubic"]), int)
            ours.append(np.abs(np.asarray(found, int) - theirs).mean())
            bicubic.append(np.abs(other - theirs).mean())
    assert np.mean(ours) < 0.75 * np.mean(bicubic)
    assert np.mean(ours) < 2


def test_load_of_16_bit_grey_takes_the_higher_bits(tmp_path):
    y, x = np.mgrid[0:45, 0:64]
    deep = (x * 1000 + y * 37).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = (deep // 256).astype(np.uint8)[..., None]
    found = Preprocessing(45, 64, 1).load(tmp_path / "deep.png")
    assert difference(found, expected) == 0
    found = Preprocessing(45, 64, 3).load(tmp_path / "deep.png")
    assert difference(found, np.repeat(expected, 3, axis=-1)) == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
def test_load_of_a_damaged_file(tmp_path, photograph, suffix):
    format = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    encoded = encode(photograph, format)
    path = tmp_path / f"damaged.{suffix}"
    for damaged in (encoded[: len(encoded) // 2], encoded[:10], b"", b"Not a picture"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(path)) as error:
            Preprocessing(32, 32, 3, 0.875).load(path)
        assert "\n" not in str(error.value)


def test_load_of_other_files(tmp_path, photograph):
    with pytest.raises(FileNotFoundError):
        Preprocessing(32, 32, 3).load(tmp_path / "missing.jpg")
    with pytest.raises(OSError):
        Preprocessing(32, 32, 3).load(tmp_path)
    path = tmp_path / "picture.tiff"
    Image.fromarray(photograph).save(path)
    with pytest.raises(ValueError, match=f"{path}: damaged, or no JPEG"):
        Preprocessing(32, 32, 3).load(path)


def test_load_of_an_animated_webp_is_refused(tmp_path, photograph):
    """TensorFlow 2.21's decode_image, asked for 0 channels, overruns its memory."""
    frames = [Image.fromarray(photograph[:45, :64] + i) for i in range(2)]
    path = tmp_path / "animated.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(ValueError, match=str(path)):
        Preprocessing(45, 64, 3).load(path)


FIELDS = {3: "Hxx", 4: "I"}  # SHORT and LONG.


def ifd(order, entries, base, after=0, room=b""):
    """A directory of a TIFF file: (tag, type, count, four bytes) in order."""
    packed = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        field = value if kind == 2 else struct.pack(f"{order}{FIELDS[kind]}", value)
        packed += struct.pack(f"{order}HHI", tag, kind, count) + field
    size = base + len(packed) + 4 + len(room)
    return packed + struct.pack(f"{order}I", size if after else 0) + room


def with_exif(encoded, order, orientation, crowded=False, thumbnail=None):
    """A JPEG file with an EXIF segment, made by hand (EXIF 2.3, TIFF 6.0)."""
    entries = [] if orientation is None else [(0x0112, 3, 1, orientation)]
    room = b""
    if crowded:  # Text lies behind the directory: its value is its place.
        room = b"Camera maker\0\0"
        place = 8 + 2 + 12 * (len(entries) + 3) + 4
        entries = [
            (0x0100, 4, 1, 4000),
            (0x010F, 2, len(room), struct.pack(f"{order}I", place)),
            *entries,
            (0x0128, 3, 1, 2),
        ]
    tiff = b"II*\0" if order == "<" else b"MM\0*"
    tiff += struct.pack(f"{order}I", 8)
    tiff += ifd(order, entries, 8, thumbnail is not None, room)
    if thumbnail is not None:
        tiff += ifd(order, [(0x0103, 3, 1, 6), (0x0112, 3, 1, thumbnail)], len(tiff))
    segment = b"Exif\0\0" + tiff
    segment = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return encoded[:2] + segment + encoded[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_equals_pillows(photograph, order, orientation):
    encoded = encode(photograph, "JPEG")
    preprocessing = Preprocessing(224, 160, 3, 0.875)
    for crowded, thumbnail in ((False, None), (True, None), (True, 9 - orientation)):
        file = with_exif(encoded, order, orientation, crowded, thumbnail)
        image = Image.open(io.BytesIO(file))
        assert image.getexif()[0x0112] == orientation
        expected = np.asarray(ImageOps.exif_transpose(image))
        turned = preprocessing.decode(file)
        assert difference(turned, expected) <= JPEG_LEVELS
        assert difference(preprocessing.read(file), preprocessing.view(turned)) <= 1
        # A data set is read as it is stored.
        stored = preprocessing.decode(file, upright=False)
        assert difference(stored, photograph) <= 12  # JPEG's loss.
        view = preprocessing.view(stored)
        assert difference(preprocessing.read(file, upright=False), view) <= 1
        split = splits.Split(np.array([file], object), np.zeros(1, np.int32))
        assert difference(pipelines.load_views(split, preprocessing)[0], view) <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [0, 9, 256, 65535])
def test_an_orientation_that_there_is_not(photograph, order, orientation):
    file = with_exif(encode(photograph, "JPEG"), order, orientation)
    found = Preprocessing(32, 32, 3).decode(file)
    assert difference(found, np.asarray(Image.open(io.BytesIO(file)))) <= JPEG_LEVELS


def test_the_tag_outside_of_an_exif_block(photograph):
    """In a comment before the pixels, and behind them."""
    encoded = encode(photograph, "JPEG")
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        tag = mark + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
        comment = b"\xff\xfe" + struct.pack(">H", len(tag) + 2) + tag
        file = encoded[:2] + comment + encoded[2:] + tag
        found = Preprocessing(32, 32, 3).decode(file)
        assert difference(found, np.asarray(Image.open(io.BytesIO(file)))) <= 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("crowded", [False, True])
def test_a_thumbnails_orientation_is_not_the_pictures(photograph, order, crowded):
    file = with_exif(encode(photograph, "JPEG"), order, None, crowded, thumbnail=6)
    image = Image.open(io.BytesIO(file))
    assert 0x0112 not in image.getexif()
    found = Preprocessing(32, 32, 3).decode(file)
    assert difference(found, np.asarray(image)) <= JPEG_LEVELS


def assert_same_crops(found, square, side, corners, levels):
    """The ten crops in any order, each once."""
    expected = [cut(square, corner, side, side) for corner in corners]
    expected += [crop[:, ::-1] for crop in expected]
    assert len(found) == 10
    places = [
        [i for i in range(10) if difference(found[i], crop) <= levels]
        for crop in expected
    ]
    assert sorted(places) == [[i] for i in range(10)]


def test_ten_crops_of_a_photograph(photograph):
    """Corners and centre of the central 256x256 of a shorter side of 256."""
    resized = Image.fromarray(photograph).resize((341, 256), FILTERS["bilinear"])
    square = np.asarray(resized)[:, 42:298]
    found = np.asarray(Preprocessing(224, 224, 3, 0.875).ten_crops(photograph))
    assert found.shape == (10, 224, 224, 3)
    corners = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    assert_same_crops(found, square, 224, corners, 1)


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.95])
def test_ten_crops_do_not_depend_on_the_central_crop(crop):
    image = noise(64, 64)
    found = np.asarray(Preprocessing(56, 56, 3, crop).ten_crops(image))
    corners = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    assert_same_crops(found, image, 56, corners, 0)


def test_ten_crops_whose_square_has_an_odd_side():
    """32 * 256/224 is 37: the corners of a 37x37 image reach its edges."""
    image = noise(37, 37)
    found = np.asarray(Preprocessing(32, 32, 3).ten_crops(image))
    corners = [(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]
    assert_same_crops(found, image, 32, corners, 0)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("sides", "shorter", "expected"),
    [
        ((300, 400), 224, (224, 298)),  # 298.67
        ((400, 300), 480, (640, 480)),
        ((333, 500), 256, (256, 384)),  # 384.38
        ((500, 375), 384, (512, 384)),
        ((20, 27), 64, (64, 86)),  # 86.4
        ((50, 50), 37, (37, 37)),
        ((1000, 30), 32, (1066, 32)),  # 1066.67
    ],
)
def test_whole_image_at_a_scale(sides, shorter, expected, interpolation):
    image = picture(*sides)
    resized = Image.fromarray(image).resize(expected[::-1], FILTERS[interpolation])
    preprocessing = Preprocessing(224, 224, 3, 0.875, interpolation)
    found = preprocessing.whole_at(image, shorter)
    assert difference(found, np.asarray(resized)) <= 1


def test_whole_image_at_a_scale_equals_numpys():
    for interpolation in FILTERS:
        image = noise(50, 71)
        preprocessing = Preprocessing(32, 32, 3, 0.875, interpolation)
        for shorter in (24, 64):
            size = shorter, shorter * 71 // 50
            expected = resampled(image, *size, interpolation)
            assert difference(preprocessing.whole_at(image, shorter), expected) <= 1


def test_sides_are_exact_for_every_ratio():
    """No rounding error of a quotient may take a pixel away."""
    for short, long in itertools.product((31, 49, 93, 300), (300, 301, 333, 1001)):
        image = tf.zeros((short, long, 1), tf.uint8)
        preprocessing = Preprocessing(32, 32, 1)
        expected = (49, 49 * long // short, 1)
        assert preprocessing.whole_at(image, 49).shape == expected


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
    mean, variance = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        variance[:2], images[..., :2].var(axis=(0, 1, 2)), rtol=1e-9
    )
    assert variance[2] == 1
