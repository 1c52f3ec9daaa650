"""Weights: where they come from, how files name them, and giving them to a network.

registry.py     the table of published checkpoints
download.py     fetching them, verified
opening.py      from what `weights=` takes to a `Checkpoint`
formats.py      the kinds of files; its table `READERS` has one reader for each ending
dialects.py     names of weights in torchvision, timm and other frameworks, to ours
checkpoint.py   arrays under our names
origin.py       what belongs to weights, such as the normalisation of pixels
recognition.py  telling the architecture and the origin from weights and layers
assign.py       giving weights to a network
saving.py       writing files
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
