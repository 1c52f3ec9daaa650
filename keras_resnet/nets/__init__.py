"""Networks as `keras.Model`s with random weights.

blocks.py   convolutions, shortcuts and residual blocks
resnet.py   complete networks, built from a `Variant`
graph.py    functions that find layers, stages and endpoints of a built network
folding.py  conversion to an equivalent network with fewer layers, for inference
cost.py     numbers of parameters and multiply-adds of a network
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
