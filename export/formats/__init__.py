"""The file formats that a network is written to.

saved_model.py  for TensorFlow Serving, and what converters read
tflite.py       `.tflite` files, a row of a table for each kind
metadata.py     labels and description within a `.tflite` file
onnx_model.py   for ONNX Runtime
openvino_ir.py  for OpenVINO, in float32 and int8
web.py          a page that classifies pictures in a browser; its files are in web/
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
