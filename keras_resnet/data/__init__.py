"""Images: sources, preprocessing, augmentation, and the batches made of them.

- `sources`: data sets by name: digits, folders, TFRecord files; `tfds_sets`: TFDS
- `splits`: images with labels (`Split`), and a data set of two splits (`Dataset`)
- `records`, `record_index`: TFRecord files, read at any place by an index
- `decoding`: image files to pixels, and their EXIF orientation
- `preprocessing`: geometry, from pixels of any size to a network's input
- `augmentation`: random crops, erasing, colours, mixing
- `policies`: RandAugment and TrivialAugment
- `training_images`: how one training image is read and augmented
- `pipelines`: batches for training (`TrainingBatches`) and evaluation
- `service`: batches prepared by `tf.data` services
- `damage`: images that cannot be decoded, refused or replaced
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
