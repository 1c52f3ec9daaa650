from .debug import write_debug as write_debug
from .equalize import equalise as equalise
from .repair import REPAIR as REPAIR
from .repair import repair as repair
