"""Datasets, preprocessing, augmentation and input pipelines.

sources.py                   loading of datasets by name: digits, folders, records, TFDS
tfds_sets.py                 loading of datasets of TFDS (TensorFlow Datasets)
splits.py                    images with labels (`Split`), and two splits (`Dataset`)
records.py, record_index.py  random access to TFRecord files, with an index
decoding.py                  decoders of image files, EXIF orientation
preprocessing.py             conversion of images of any size to a network's input
augmentation.py              random crops, erasing, colour shifts, mixup and CutMix
policies.py                  RandAugment and TrivialAugment
training_images.py           functions that read and augment training images
pipelines.py                 batches for training (`TrainingBatches`) and evaluation
service.py                   batches prepared by `tf.data` services
damage.py                    detection and replacement of damaged images
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
