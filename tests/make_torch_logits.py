"""Writes tests/fixtures/torch_logits.json, the logits of PyTorch networks.

Tests compare these logits with the logits of this package. The PyTorch networks are
from torchvision, timm and the class `CifarResNet` below. The tests only read the file, so
they need no PyTorch. To write the file again, run in a separate environment:

    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6
    python tests/make_torch_logits.py

No weights are downloaded, because tests/state_dicts.py creates random weights. On another
CPU the last digits of the logits may differ.
"""

import json
import pathlib

import numpy as np
import timm
import torch
import torchvision
from state_dicts import hash_shapes, make_arrays, make_images
from torch import nn

OUTPUT = pathlib.Path(__file__).parent / "fixtures" / "torch_logits.json"
NUM_CLASSES = 8
INPUT = {
    "number": 2,
    "sizes": {"torchvision": 64, "timm": 64, "cifar": 32},
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
TORCHVISION_MODELS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
    "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
DILATION_BY_STRIDE = {16: [False, False, True], 8: [False, True, True]}
TIMM_MODELS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d",
    "seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152",
)  # fmt: skip
CIFAR_DEPTHS = {"A": (20, 32, 44, 56, 110), "B": (20, 56)}

# Each row has the library that builds the network, the network's name in the JSON file
# and its constructor's options. torchvision gets only the first word of the name.
NETWORKS = [
    *(("torchvision", name, {}) for name in TORCHVISION_MODELS),
    *(
        (
            "torchvision",
            f"resnet50 output_stride {stride}",
            {"replace_stride_with_dilation": dilation},
        )
        for stride, dilation in DILATION_BY_STRIDE.items()
    ),
    *(("timm", name, {}) for name in TIMM_MODELS),
    *(
        ("cifar", f"resnet{depth} {shortcut}", {"depth": depth, "shortcut": shortcut})
        for shortcut, depths in CIFAR_DEPTHS.items()
        for depth in depths
    ),
]


class CifarBlock(nn.Module):
    """A block of two 3x3 convolutions, with the key names of published checkpoints."""

    def __init__(self, in_channels, out_channels, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.new_channels = out_channels - in_channels if shortcut == "A" else 0
        self.shortcut = nn.Sequential()
        if in_channels != out_channels and shortcut == "B":
            self.shortcut.append(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            )
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = self.shortcut(x)
        if self.new_channels:  # Pad with zero channels, equally before and after `x`.
            num_zeros = self.new_channels // 2
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, num_zeros, num_zeros))
        return (x + y).relu()


class CifarResNet(nn.Module):
    """The paper's CIFAR network with 6n + 2 layers."""

    def __init__(self, depth, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (in_channels, out_channels) in enumerate(
            [(16, 16), (16, 32), (32, 64)], 1
        ):
            layer = nn.Sequential(
                CifarBlock(in_channels, out_channels, 1 if stage == 1 else 2, shortcut)
            )
            for _ in range((depth - 2) // 6 - 1):
                layer.append(CifarBlock(out_channels, out_channels, 1, shortcut))
            self.add_module(f"layer{stage}", layer)
        self.linear = nn.Linear(64, NUM_CLASSES)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def build_network(source, name, options):
    match source:
        case "torchvision":
            name = name.split()[0]
            return torchvision.models.get_model(
                name, num_classes=NUM_CLASSES, **options
            )
        case "timm":
            return timm.create_model(name, pretrained=False, num_classes=NUM_CLASSES)
        case "cifar":
            return CifarResNet(**options)


def make_input(size):
    """Returns normalised images as a tensor of shape (num_images, 3, size, size)."""
    normalised_images = (
        make_images(INPUT["number"], size) / 255 - INPUT["mean"]
    ) / INPUT["std"]
    return (
        torch.from_numpy(normalised_images.astype(np.float32))
        .permute(0, 3, 1, 2)
        .contiguous()
    )


def make_entry(source, name, options):
    """Returns the entry of the JSON file that describes one network."""
    network = build_network(source, name, options).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    arrays = make_arrays(shapes)
    network.load_state_dict(
        {key: torch.from_numpy(array) for key, array in arrays.items()}, strict=True
    )
    with torch.no_grad():
        logits = network(make_input(INPUT["sizes"][source]))
    return {
        "source": source,
        "model": name,
        "options": options,
        "keys": sum(not key.endswith("num_batches_tracked") for key in shapes),
        "digest": hash_shapes(shapes),
        "logits": [[float(f"{value:.7g}") for value in row] for row in logits.tolist()],
    }


def main():
    header = {
        "made_by": "tests/make_torch_logits.py",
        "versions": {
            module.__name__: module.__version__
            for module in (torch, torchvision, timm, np)
        },
        "input": INPUT,
    }
    lines = [f'"{key}":{_dump(value)},' for key, value in header.items()]
    entries = ",\n".join(_dump(make_entry(*network)) for network in NETWORKS)
    text = "\n".join(["{", *lines, '"nets":[', entries, "]", "}", ""])
    OUTPUT.write_text(text, encoding="utf-8")


def _dump(value):
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main()
