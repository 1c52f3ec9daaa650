"""Tools that check and measure a bundle on a device; they need only LiteRT and NumPy.

manifest.py    manifest.json of a bundle as typed records, and checks of its files
runtimes.py    LiteRT, TensorFlow, ONNX Runtime and OpenVINO behind one interface
comparison.py  comparison of an artifact with its Keras model, and the limits
timing.py      latency and memory of artifacts, each measured in its own process
card.py        MODEL_CARD.md and the printed tables
clients.py     code examples in MODEL_CARD.md, one for each client
labels.py      class names as lines of labels.txt
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
