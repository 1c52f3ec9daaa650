"""int8: a network that loses less in it, and a report of where it loses.

repair.py    what is done to a network before int8: equalisation, then GPTQ
equalize.py  cross-layer equalisation of the channels' ranges
gptq.py      rounding of weights that makes good what earlier ones lost
debug.py     int8 beside float32, layer by layer
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
