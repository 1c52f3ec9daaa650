"""The file formats that a network is exported to.

saved_model.py  SavedModels for TensorFlow Serving and for the TFLite converter
tflite.py       `.tflite` files, one row of a table for each format
metadata.py     labels and description inside a `.tflite` file
onnx_model.py   ONNX files for ONNX Runtime
openvino_ir.py  OpenVINO files, in float32 and int8
web.py          a web page that classifies images in the browser; template in web/
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
