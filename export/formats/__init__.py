"""The file formats that a network is written to.

saved_model    for TensorFlow Serving, and what converters read
tflite         `.tflite` files, a row of a table for each kind
metadata       labels and description within a `.tflite` file
onnx_model     for ONNX Runtime
openvino_ir    for OpenVINO, in float32 and int8
web            a page that classifies pictures in a browser; its files are in web/
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
