"""Training a network into a run folder.

run.py           `train`: from options to a run folder
resolution.py    from options to a `RunSpec` and its images
preparation.py   a run that is ready: devices, images, network, folder
network.py       the network: new or from weights, frozen stages, a fresh head
loop.py          epochs and steps, callbacks, checkpoints, stopping
step.py          one training step: loss, gradients, averages
optimizers.py    optimizers and learning rates of the recipes
batch_source.py  the batches from any step on; damaged images are replaced
validation.py    loss and accuracy on the validation split
epoch_log.py     what is printed and checked of an epoch
worker_group.py  what several workers agree on; SIGTERM as a flag
checkpoints.py   what a killed run resumes from
run_folder.py    what a run leaves; refuses another run's folder
figures.py       its pictures
rate_range.py    the learning-rate range test
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
