"""The JSON metadata of weights files stores an `Origin` without loss."""

import json
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_weights import build_bottleneck, build_resnet8, make_cifar_state, write_state

from keras_resnet.support.errors import InputError
from keras_resnet.weights import formats, saving
from keras_resnet.weights.origin import Origin, PixelFormat
from keras_resnet.weights.recognition import find_pixel_format

numbers = st.floats(-1e6, 1e6)
channel = st.tuples(numbers, st.floats(1e-6, 1e6))  # Mean and variance.
pixel_formats = st.builds(
    lambda channels, *values: PixelFormat(*zip(*channels, strict=True), *values),
    st.lists(channel, min_size=1, max_size=4),
    st.floats(1e-3, 1),
    st.sampled_from(["bilinear", "bicubic"]),
    st.none() | st.integers(1, 512),
)
names = st.none() | st.text(max_size=5)
origins = st.builds(
    Origin,
    st.just("net.keras"),
    st.none() | pixel_formats,
    st.none() | st.lists(st.text(max_size=5), max_size=4).map(tuple),
    names,
    names,
    names,
    st.none() | st.booleans(),
    st.booleans(),
)
# The JSON types that `Origin` documents, as regular expressions.
NUMBER, STRING = r"-?\d+(\.\d+)?(e[+-]?\d+)?", r'"([^"\\]|\\.)*"'
NUMBERS, STRINGS = (rf"\[({item}(, {item})*)?\]" for item in (NUMBER, STRING))
JSON_TYPES = {
    "pixels": rf"\[{NUMBERS}, {NUMBERS}(, {NUMBER}(, {STRING}(, (null|-?\d+))?)?)?\]",
    "classes": STRINGS, "model": STRING, "stride_on": STRING, "shortcut": STRING,
    "avg_down": "true|false", "certain": "true|false",
}  # fmt: skip
first_pixel_fields = st.builds(
    lambda pixels, count: pixels[:count], pixel_formats, st.integers(1, 5)
)
scalars = st.none() | st.integers(-1000, 1000) | numbers | st.text(max_size=3)
json_values = st.recursive(
    scalars,
    lambda values: st.lists(values, max_size=5) | st.dictionaries(names, values),
    max_leaves=8,
)


@settings(max_examples=40)
@given(origins)
def test_metadata_is_read_as_it_was_written(origin):
    metadata = origin.to_metadata()
    assert Origin.from_metadata(metadata, "net.keras") == origin
    assert Origin.from_metadata(metadata.encode(), "b").source == "b"


def is_in_range(values):
    """Returns whether the numbers of a `PixelFormat` are usable."""
    pixels = PixelFormat(*values)
    return (
        0 < len(pixels.mean) == len(pixels.variance)
        and all(value > 0 for value in pixels.variance)
        and 0.001 <= pixels.crop <= 1
        and pixels.interpolation in ("bilinear", "bicubic")
        and (pixels.size is None or 1 <= pixels.size <= 32_768)
    )


@given(
    json_values | scalars | st.booleans()
    | first_pixel_fields | st.lists(st.text(max_size=3))
)  # fmt: skip
def test_a_field_of_any_json_type_is_read_or_refused(value):
    text = json.dumps(value)
    for name, pattern in JSON_TYPES.items():
        metadata = json.dumps({name: value, "source": value})
        is_usable = name != "pixels" or value is None or not isinstance(value, list)
        if re.fullmatch(f"{pattern}|null", text) and (is_usable or is_in_range(value)):
            origin = Origin.from_metadata(metadata, "net.keras")
            assert origin.source == "net.keras"
            field_text = json.dumps(getattr(origin, name))
            assert re.fullmatch(f"{pattern}|null", field_text)
            # Default values complete a list of pixels.
            assert value is None or field_text.startswith(text[:-1])
        else:
            with pytest.raises(InputError, match="damaged metadata"):
                Origin.from_metadata(metadata, "net.keras")


@pytest.mark.parametrize(
    "metadata",
    [
        "", "[]", '""', "{", "[" * 100_000, "7", "null", '"text"', "[1]", 7, None, b"\xff",
        np.zeros(3), '{"pixels": 7}', '{"pixels": "ab"}', '{"pixels": []}',
        '{"pixels": [[1], 1]}', '{"pixels": [[1], ["1"]]}', '{"pixels": [[1], [null]]}',
        '{"pixels": [[1], [1], "0.5"]}', '{"pixels": [[1], [1], 1, 1]}',
        '{"pixels": [[1], [1], 1, "bicubic", 1.5]}',
        '{"pixels": [[1], [1], 1, "bicubic", 8, 8]}', '{"classes": "ab"}',
        '{"classes": ["a", 1]}', '{"model": 7}', '{"stride_on": []}', '{"shortcut": {}}',
        '{"avg_down": 1}', '{"certain": "no"}', '{"pixels": [[NaN], [1]]}',
        f'{{"pixels": [[1], [{10**400}]]}}', '{"pixels": [[1], [1], 1, "", 1e999]}',
        '{"pixels": [[], []]}', '{"pixels": [[1], [0]]}', '{"pixels": [[1], [-1]]}',
        '{"pixels": [[1, 2], [1]]}', '{"pixels": [[1], [1], 0]}',
        '{"pixels": [[1], [1], 1.5]}', '{"pixels": [[1], [1], 1, "nearest"]}',
        '{"pixels": [[1], [1], 1, "bicubic", 100000]}', '{"pixels": [[1], [true]]}',
    ],
)  # fmt: skip
def test_damaged_metadata_is_refused(metadata):
    with pytest.raises(InputError, match=r"^net\.keras contains damaged metadata"):
        Origin.from_metadata(metadata, "net.keras")


def test_metadata_of_other_versions_is_read():
    """Unknown fields are ignored, and missing ones have defaults."""
    metadata = '{"pixels": [[1, 2.5], [3, 4]], "later": {"a": 1}, "source": "old"}'
    assert Origin.from_metadata(metadata, "a") == Origin(
        "a", PixelFormat((1, 2.5), (3, 4), 0.875, "bilinear", None)
    )
    assert Origin.from_metadata("{}", "a") == Origin("a")


def test_metadata_fits_into_the_comment_of_a_zip_file():
    """The format limits the comment to 65,535 bytes, so long class names are left out."""
    for length, is_stored in ((60, True), (63, False)):
        classes = tuple(f"{i:0{length}}" for i in range(1000))
        metadata = Origin("a", classes=classes, model="resnet50").to_metadata()
        assert len(metadata) < 2**16
        expected = classes if is_stored else None
        assert Origin.from_metadata(metadata, "b").classes == expected
        assert Origin.from_metadata(metadata, "b").model == "resnet50"


@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        ("keras", saving.save_model),
        ("weights.h5", saving.save_weights),
        ("safetensors", saving.save_state_dict),
    ],
)
def test_a_file_stores_the_origin_of_a_network(suffix, save, tmp_path):
    weights = write_state(make_cifar_state(), tmp_path / "net.npz")
    model = build_resnet8(weights=weights)
    classes = tuple("abcdefghi") + ("é 零",)
    pixels = PixelFormat((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0.5, "bicubic", 32)
    model.origin = Origin("x", pixels, classes, "cifar_resnet8")
    path = str(tmp_path / f"net.{suffix}")
    save(model, path)
    origin = formats.read_checkpoint(path).origin
    assert origin == Origin(
        path, pixels, classes, "cifar_resnet8", None, "A", avg_down=False
    )


@pytest.mark.parametrize(
    ("build", "crop"), [(build_resnet8, 1.0), (build_bottleneck, 0.875)]
)
def test_the_normalisation_layer_determines_the_pixel_format(build, crop):
    """Networks for ImageNet crop 224 of 256 pixels, and CIFAR networks do not crop."""
    image = keras.Input((32, 32, 3))
    normalisation = keras.layers.Normalization(
        mean=(1, 2, 3), variance=(4, 5, 6), name="normalization"
    )
    pixels = find_pixel_format(build(input_tensor=normalisation(image)))
    assert pixels == PixelFormat((1, 2, 3), (4, 5, 6), crop, "bilinear", 32)
    assert find_pixel_format(build()) is None
