from .debug import write_layer_report as write_layer_report
from .equalize import equalise as equalise
from .repair import REPAIR_DESCRIPTION as REPAIR_DESCRIPTION
from .repair import repair_network as repair_network
