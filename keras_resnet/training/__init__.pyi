from .rate_range import find_learning_rate as find_learning_rate
from .run import train as train
from .run_folder import lock_folder as lock_folder
from .run_folder import save_network as save_network
