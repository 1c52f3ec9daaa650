"""Training a network into a run folder.

run.py           `train`, the public function
resolution.py    conversion of the options into a `RunSpec`, loading of the dataset
preparation.py   preparation of devices, images, network and run folder
network.py       network with random or given weights, frozen stages
loop.py          training loop: epochs, callbacks, checkpoints, stopping
step.py          training step: loss, gradients, update, averaged weights
optimizers.py    optimizers and learning-rate schedules
batch_source.py  training batches, starting at any step; replaces damaged images
validation.py    loss and accuracy on the validation split
epoch_log.py     loss and accuracy during an epoch; progress lines
worker_group.py  communication between workers; stop flag that signals set
checkpoints.py   training checkpoints, from which interrupted runs resume
run_folder.py    files of the run folder; check that the folder belongs to the run
figures.py       figures of the run folder
rate_range.py    learning-rate range test
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
