"""Metadata of a `.tflite` file: name, input, licence and labels.

TFLite metadata is a second FlatBuffer (schema `metadata_schema.fbs`) that is stored
inside the model's FlatBuffer. The label file is in a zip archive that is appended to
the model. MediaPipe Tasks and the Task libraries on phones read the metadata and the
labels, and LiteRT ignores both. No Python package writes TFLite metadata on every
supported Python version: `tflite-support` ends at Python 3.11, and MediaPipe's writer
imports modules that the wheel of MediaPipe lacks.
"""

import io
import zipfile
from typing import TypeAlias

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.data import Preprocessing
from keras_resnet.evaluation import Classifier

from ..device import LABELS_FILE, make_label_lines

# Field names of each table in metadata_schema.fbs, in the schema's order. A FlatBuffer
# stores the index of a field, not its name. A union takes two fields: type and table.
_TABLES = {
    "ModelMetadata": "name description version subgraph_metadata author license "
    "associated_files min_parser_version",
    "SubGraphMetadata": "name description input_tensor_metadata output_tensor_metadata",
    "TensorMetadata": "name description dimension_names content process_units stats "
    "associated_files",
    "Content": "content_properties_type content_properties",
    "FeatureProperties": "",
    "ImageProperties": "color_space default_size",
    "ImageSize": "width height",
    "ProcessUnit": "options_type options",
    "NormalizationOptions": "mean std",
    "Stats": "max min",
    "AssociatedFile": "name description type",
}

# Value of a field: a string, a number, an array of numbers, a table or a list of
# tables. A table is a dict from field indices to values.
_Value: TypeAlias = "str | np.generic | np.ndarray | _Table | list[_Table]"
_Table: TypeAlias = dict[int, _Value]


def add_metadata(content: bytes, classifier: Classifier) -> bytes:
    """Adds metadata and labels to a `.tflite` file and fixes its batch size to one.

    For each tensor, the converter writes a shape with a batch size of one, and a "shape
    signature" that marks the batch size as variable. This function removes the
    signature, because LiteRT.js and some delegates reject it. LiteRT can still resize
    the batch. `content` and the returned value are the bytes of the file.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.shapeSignature = None
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_pack_metadata(classifier), np.uint8)
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = _AlignedBuilder(len(content) + 2**20)
    builder.Finish(model.Pack(builder), b"TFL3")
    stream = io.BytesIO()
    stream.write(builder.Output())
    # Clients need an uncompressed archive, and `ZipFile` does not compress by default.
    # `ZipInfo` has a constant date, so that a model always produces the same file.
    with zipfile.ZipFile(stream, "w") as archive:
        label_file = zipfile.ZipInfo(LABELS_FILE)
        label_file.external_attr = 0o644 << 16  # Readable by every user once extracted.
        labels = "".join(f"{label}\n" for label in make_label_lines(classifier.classes))
        archive.writestr(label_file, labels)
    return stream.getvalue()


class _AlignedBuilder(flatbuffers.Builder):
    """A FlatBuffer builder that aligns arrays to 16 bytes.

    LiteRT's schema requires this alignment for weights. The schema's generated Python
    code, which TensorFlow's converter also uses, does not align arrays.
    """

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        self.Prep(16, x.nbytes)
        return super().CreateNumpyVector(x)


def _pack_metadata(classifier: Classifier) -> bytes:
    """Returns the metadata of a classifier as a FlatBuffer."""
    provenance, count = classifier.provenance, len(classifier.classes)
    origin = {"author": provenance.publisher, "license": provenance.licence}
    (name,) = make_label_lines([classifier.name])
    subgraph = _make_table(
        "SubGraphMetadata",
        input_tensor_metadata=[_describe_image(classifier.preprocessing)],
        output_tensor_metadata=[_describe_probabilities(count)],
    )
    model = _make_table(
        "ModelMetadata",
        name=name,
        description=f"Image classifier of {count} classes by keras_resnet.",
        version="1",
        subgraph_metadata=[subgraph],
        # Oldest version of the metadata format that has all fields in `_TABLES`.
        min_parser_version="1.0.0",
        **{field: text for field, text in origin.items() if text},
    )
    builder = flatbuffers.Builder()
    builder.Finish(_write_value(builder, model), b"M001")
    return bytes(builder.Output())


def _describe_image(preprocessing: Preprocessing) -> _Table:
    is_grey = preprocessing.channels == 1
    height, width = preprocessing.height, preprocessing.width
    size = _make_table("ImageSize", width=np.uint32(width), height=np.uint32(height))
    color_space = np.int8(2 if is_grey else 1)  # GRAYSCALE or RGB
    image = _make_table("ImageProperties", color_space=color_space, default_size=size)
    # Clients require normalisation options for float32 input. A mean of 0 and a
    # deviation of 1 change nothing, because the network normalises its input itself.
    identity = _make_table("NormalizationOptions", mean=_to_array(0), std=_to_array(1))
    return _make_table(
        "TensorMetadata",
        name="image",
        description=f"{'Grey' if is_grey else 'RGB'} image, {height} rows by {width} "
        "columns, values from 0 to 255. The model normalises them itself.",
        content=_make_union("Content", "content_properties", 2, image),
        process_units=[_make_union("ProcessUnit", "options", 1, identity)],
        stats=_make_table("Stats", max=_to_array(255), min=_to_array(0)),
    )


def _describe_probabilities(count: int) -> _Table:
    properties = _make_table("FeatureProperties")
    labels = _make_table(
        "AssociatedFile",
        name=LABELS_FILE,
        description="Name of each class, in the order of the probabilities.",
        type=np.int8(2),  # TENSOR_AXIS_LABELS
    )
    return _make_table(
        "TensorMetadata",
        name="probabilities",
        description=f"Probability of each of {count} classes.",
        content=_make_union("Content", "content_properties", 1, properties),
        stats=_make_table("Stats", max=_to_array(1), min=_to_array(0)),
        associated_files=[labels],
    )


def _to_array(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def _make_union(kind: str, field: str, type_index: int, table: _Table) -> _Table:
    """Returns a table of type `kind` whose union `field` contains `table`.

    `type_index` is the position, counted from 1, of the type of `table` in the list of
    types that the schema declares for this union.
    """
    fields: dict[str, _Value] = {f"{field}_type": np.uint8(type_index), field: table}
    return _make_table(kind, **fields)


def _make_table(kind: str, **fields: _Value) -> _Table:
    """Returns a table of type `kind`: a dict from field indices to values."""
    names = _TABLES[kind].split()
    return {names.index(name): value for name, value in fields.items()}


def _write_value(builder: flatbuffers.Builder, value: _Value) -> int:
    """Writes a string, array, list or table to a FlatBuffer, and returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_write_value(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    assert isinstance(value, dict)  # Tables pass no numbers to this function.
    fields = {
        index: item if isinstance(item, np.generic) else _write_value(builder, item)
        for index, item in value.items()
    }
    slot_writers = {
        np.int8: builder.PrependInt8Slot,
        np.uint8: builder.PrependUint8Slot,
        np.uint32: builder.PrependUint32Slot,
    }
    builder.StartObject(max(fields, default=-1) + 1)
    for index, item in fields.items():
        write_slot = slot_writers.get(type(item), builder.PrependUOffsetTRelativeSlot)
        write_slot(index, item, 0)
    return builder.EndObject()
