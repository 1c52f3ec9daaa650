"""What a `.tflite` file says of itself: name, input, licence, labels.

The TFLite metadata format: a second FlatBuffer within the model's, by the schema
`metadata_schema.fbs`, and the files that it names as a zip archive behind the
model. MediaPipe Tasks and the Task libraries on phones read both; LiteRT passes
over them. No distribution writes it on every Python that we support (`tflite-support`
ended with 3.11, and MediaPipe's writer imports what its wheel lacks), so that the few
tables which a classifier needs are written here.
"""

import io
import zipfile
from typing import TypeAlias

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_resnet.data import Preprocessing
from keras_resnet.evaluation import Classifier

from ..device import LABELS_FILE, label_lines

# The fields of each table in the order of metadata_schema.fbs, which is their place
# in the file. A union has two: its type, and the table.
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

# What a table holds: a text, a number, an array of numbers, a table, a list of tables.
# A table is a dict from the place of a field to its value.
_Value: TypeAlias = "str | np.generic | np.ndarray | _Table | list[_Table]"
_Table: TypeAlias = dict[int, _Value]


def add_metadata(content: bytes, classifier: Classifier) -> bytes:
    """Adds metadata and labels to a `.tflite` file, and states its batch of one.

    A converter leaves the batch open beside the shape that it writes; LiteRT resizes
    a file without that too, and LiteRT.js and some delegates refuse a file with it.
    `content` and what is returned are the bytes of a file.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.shapeSignature = None
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_describe(classifier), np.uint8)
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = _AlignedBuilder(len(content) + 2**20)
    builder.Finish(model.Pack(builder), b"TFL3")
    stream = io.BytesIO()
    stream.write(builder.Output())
    # Stored, not compressed, as clients expect; of no date, so that the same model
    # gives the same file.
    with zipfile.ZipFile(stream, "w") as archive:
        file = zipfile.ZipInfo(LABELS_FILE)
        file.external_attr = 0o644 << 16  # Whoever unpacks it may read it.
        lines = "".join(f"{label}\n" for label in label_lines(classifier.classes))
        archive.writestr(file, lines)
    return stream.getvalue()


class _AlignedBuilder(flatbuffers.Builder):
    """Aligns arrays to 16 bytes, as LiteRT's schema demands of weights.

    The code generated for Python, TensorFlow's converter included, does not.
    """

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        self.Prep(16, x.nbytes)
        return super().CreateNumpyVector(x)


def _describe(classifier: Classifier) -> bytes:
    """Returns the metadata of a classifier, a FlatBuffer."""
    provenance, count = classifier.provenance, len(classifier.classes)
    known = {"author": provenance.publisher, "license": provenance.licence}
    (name,) = label_lines([classifier.name])
    graph = _table(
        "SubGraphMetadata",
        input_tensor_metadata=[_describe_image(classifier.preprocessing)],
        output_tensor_metadata=[_describe_probabilities(count)],
    )
    model = _table(
        "ModelMetadata",
        name=name,
        description=f"Image classifier of {count} classes by keras_resnet.",
        version="1",
        subgraph_metadata=[graph],
        # The first version of the format has all these fields.
        min_parser_version="1.0.0",
        **{field: text for field, text in known.items() if text},
    )
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, model), b"M001")
    return bytes(builder.Output())


def _describe_image(preprocessing: Preprocessing) -> _Table:
    grey = preprocessing.channels == 1
    height, width = preprocessing.height, preprocessing.width
    size = _table("ImageSize", width=np.uint32(width), height=np.uint32(height))
    space = np.int8(2 if grey else 1)
    image = _table("ImageProperties", color_space=space, default_size=size)
    # That there is nothing to do has to be said where the input is float32.
    nothing = _table("NormalizationOptions", mean=_floats(0), std=_floats(1))
    return _table(
        "TensorMetadata",
        name="image",
        description=f"{'Grey' if grey else 'RGB'} image, {height} rows of {width} pixels "
        "from 0 to 255; the model normalises them itself.",
        content=_union("Content", "content_properties", 2, image),
        process_units=[_union("ProcessUnit", "options", 1, nothing)],
        stats=_table("Stats", max=_floats(255), min=_floats(0)),
    )


def _describe_probabilities(count: int) -> _Table:
    feature = _table("FeatureProperties")
    labels = _table(
        "AssociatedFile",
        name=LABELS_FILE,
        description="Name of each class, in the order of the probabilities.",
        type=np.int8(2),  # TENSOR_AXIS_LABELS
    )
    return _table(
        "TensorMetadata",
        name="probabilities",
        description=f"Probability of each of {count} classes.",
        content=_union("Content", "content_properties", 1, feature),
        stats=_table("Stats", max=_floats(1), min=_floats(0)),
        associated_files=[labels],
    )


def _floats(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def _union(kind: str, field: str, number: int, table: _Table) -> _Table:
    """Returns a table with a union that holds the table of that number in the schema."""
    fields: dict[str, _Value] = {f"{field}_type": np.uint8(number), field: table}
    return _table(kind, **fields)


def _table(kind: str, **fields: _Value) -> _Table:
    """Returns a table for `_write`: its fields by their places."""
    places = _TABLES[kind].split()
    return {places.index(name): value for name, value in fields.items()}


def _write(builder: flatbuffers.Builder, value: _Value) -> int:
    """Writes a value to a FlatBuffer and returns the offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        offsets = [_write(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    assert isinstance(value, dict)  # Numbers stand within their table.
    fields = {
        place: item if isinstance(item, np.generic) else _write(builder, item)
        for place, item in value.items()
    }
    number = {
        np.int8: builder.PrependInt8Slot,
        np.uint8: builder.PrependUint8Slot,
        np.uint32: builder.PrependUint32Slot,
    }
    builder.StartObject(max(fields, default=-1) + 1)
    for place, item in fields.items():
        put = number.get(type(item), builder.PrependUOffsetTRelativeSlot)
        put(place, item, 0)
    return builder.EndObject()
