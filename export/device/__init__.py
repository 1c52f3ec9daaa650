"""Tools that check and measure a bundle on a device; they need only LiteRT and NumPy.

manifest.py    types of the entries of manifest.json, and checks of the listed files
runtimes.py    LiteRT, TensorFlow, ONNX Runtime and OpenVINO behind one interface
comparison.py  comparison of an artifact with its Keras model, and accepted differences
timing.py      latency and memory of artifacts, each measured in its own process
card.py        MODEL_CARD.md, labels.txt and the printed tables
clients.py     code examples in MODEL_CARD.md, by library that runs the artifact
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
