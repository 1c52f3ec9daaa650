"""Loading, converting and saving of weights.

registry.py     table of published checkpoints
download.py     downloads that are verified by a hash
opening.py      conversion of an argument `weights=` to a `Checkpoint`
formats.py      readers of weights files, one for each file format
dialects.py     names of weights in torchvision, timm and CIFAR repositories
checkpoint.py   weights as arrays under the names that this package uses
origin.py       origin of weights, and the pixel format that the weights require
recognition.py  detection of the variant and origin from weights and layers
assign.py       assignment of weights to a network
saving.py       writers of weights files
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
