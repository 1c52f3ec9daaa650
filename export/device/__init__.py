"""What runs on a device, with LiteRT and NumPy alone.

manifest.py    manifest.json of a bundle as typed records, and the files that it lists
runtimes.py    LiteRT, TensorFlow, ONNX Runtime and OpenVINO behind one interface
comparison.py  whether an artifact agrees with its Keras model, and by what limits
timing.py      latency and memory of artifacts, each in a process of its own
card.py        MODEL_CARD.md and the printed tables
clients.py     the card's lines of code for each client
labels.py      names of classes as lines of labels.txt
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
