"""Distribution of training over devices and worker processes.

strategies.py   `tf.distribute` strategies by name, and functions for training loops
cluster.py      addresses of the workers, from TF_CONFIG, Slurm or Kubernetes
connections.py  connections between the workers, which show that a worker is lost
workers.py      start of several worker processes on this machine
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
