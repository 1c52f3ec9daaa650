"""Weights: where they come from, how files name them, and giving them to a network.

- `registry`: the table of published checkpoints.
- `download`: fetching them, verified.
- `opening`: from what `weights=` takes to a `Checkpoint`.
- `formats`: the kinds of files; its table `READERS` has one reader for each ending.
- `dialects`: names of weights in torchvision, timm and other frameworks, to ours.
- `checkpoint`: arrays under our names.
- `origin`: what belongs to weights, such as the normalisation of pixels.
- `recognition`: telling the architecture and the origin from weights and layers.
- `assign`: giving weights to a network.
- `saving`: writing files.
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
