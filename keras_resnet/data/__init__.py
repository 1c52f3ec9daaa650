"""Images: sources, preprocessing, augmentation, and the batches made of them.

sources.py                   data sets by name: digits, folders, TFRecord files
tfds_sets.py                 data sets of TFDS
splits.py                    images with labels (`Split`), two of them a `Dataset`
records.py, record_index.py  TFRecord files, read at any place by an index
decoding.py                  image files to pixels, and their EXIF orientation
preprocessing.py             geometry, from pixels of any size to a network's input
augmentation.py              random crops, erasing, colours, mixing
policies.py                  RandAugment and TrivialAugment
training_images.py           how one training image is read and augmented
pipelines.py                 batches for training (`TrainingBatches`) and evaluation
service.py                   batches prepared by `tf.data` services
damage.py                    images that cannot be decoded, refused or replaced
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
