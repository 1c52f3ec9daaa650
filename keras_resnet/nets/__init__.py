"""Networks as `keras.Model`s, without their weights.

blocks.py   convolutions, shortcuts and residual blocks
resnet.py   a whole network, from a `Variant`
graph.py    walking a built network: its layers, stages, endpoints, batch norms
folding.py  the same network with fewer layers, for inference
cost.py     parameters and multiply-adds
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
