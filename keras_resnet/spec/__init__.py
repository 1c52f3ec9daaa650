"""What is chosen, as frozen typed values and tables; needs neither Keras nor TensorFlow.

variants.py   the table of architectures
recipes.py    the table of recipes; what a change of the batch does to the rate
execution.py  how steps are executed; what may differ when a run is resumed
fields.py     reading and checking the fields of recipes and executions
options.py    what a user asks for: options of a run, of any command with a network
run_spec.py   what a run was resolved to, and where a network comes from
"""

from keras_resnet.support.front_door import open_front_door

__getattr__, __dir__, __all__ = open_front_door(__name__)
