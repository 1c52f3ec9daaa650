"""Training a network into a run folder.

run.py           `train`, the public function
resolution.py    resolution of the options into a `RunSpec` and its dataset
preparation.py   preparation of devices, images, network and run folder
network.py       network with random or given weights, frozen stages
loop.py          training loop: epochs, callbacks, checkpoints, stopping
step.py          training step: loss, gradients, update, averaged weights
optimizers.py    optimizers and learning-rate schedules
batch_source.py  training batches from any step on; replaces damaged images
validation.py    loss and accuracy on the validation split
epoch_log.py     loss and accuracy while training; progress lines
worker_group.py  agreement between workers; the stop flag that SIGTERM sets
checkpoints.py   training checkpoints, from which interrupted runs resume
run_folder.py    files of the run folder; refuses the folder of another run
figures.py       figures of the run folder
rate_range.py    learning-rate range test
"""

from keras_resnet.support.lazy_imports import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__)
