from .evaluation import preprocessing_for as preprocessing_for
from .nets import endpoints as endpoints
from .nets import profile as profile
from .spec import list_models as list_models
from .support import InputError as InputError
from .weights import list_weights as list_weights
from .zoo import Constructor
from .zoo import ResNet as ResNet

__version__: str

# The networks of the paper, then later variations.
ResNet18: Constructor
ResNet34: Constructor
ResNet50: Constructor
ResNet101: Constructor
ResNet152: Constructor
PlainNet18: Constructor
PlainNet34: Constructor
ResNet20: Constructor
ResNet32: Constructor
ResNet44: Constructor
ResNet56: Constructor
ResNet110: Constructor
ResNet1202: Constructor
PlainNet20: Constructor
PlainNet32: Constructor
PlainNet44: Constructor
PlainNet56: Constructor
PlainNet110: Constructor
PlainNet1202: Constructor
ResNet50V2: Constructor
ResNet101V2: Constructor
ResNet152V2: Constructor
ResNet18D: Constructor
ResNet34D: Constructor
ResNet50D: Constructor
ResNet101D: Constructor
ResNet152D: Constructor
SEResNet18: Constructor
SEResNet34: Constructor
SEResNet50: Constructor
SEResNet101: Constructor
SEResNet152: Constructor
ResNeXt50_32x4d: Constructor
ResNeXt101_32x8d: Constructor
ResNeXt101_64x4d: Constructor
Wide_ResNet50_2: Constructor
Wide_ResNet101_2: Constructor
