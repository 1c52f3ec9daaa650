"""Devices and workers.

strategies.py  `tf.distribute` strategies by name, and what a loop asks of them
cluster.py     the other workers: TF_CONFIG, Slurm, Kubernetes
workers.py     several workers as processes of this machine
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
