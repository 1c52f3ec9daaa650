"""Loading, converting and saving of weights.

registry.py     table of published checkpoints
download.py     verified downloads
opening.py      `Checkpoint` for an argument `weights=`
formats.py      readers of weights files; `READERS` has one for each file ending
dialects.py     names of weights in torchvision, timm and CIFAR repositories
checkpoint.py   arrays under the names of this package
origin.py       origin of weights, with the pixel format that they require
recognition.py  detection of the variant and origin from weights and layers
assign.py       assignment of weights to a network
saving.py       writers of weights files
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
