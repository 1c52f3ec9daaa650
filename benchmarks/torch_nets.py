"""PyTorch networks for the benchmarks. This module needs only torch."""

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Block with two 3x3 convolutions and shortcut A, which pads with zero channels."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.zero_channels = stride, out_channels - in_channels

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.zero_channels:
            x = x[:, :, :: self.stride, :: self.stride]
            padding = self.zero_channels // 2
            x = functional.pad(x, (0, 0, 0, 0, padding, self.zero_channels - padding))
        return functional.relu(x + y)


class Bottleneck(nn.Module):
    """Block with 1x1 (strided), 3x3 and 1x1 convolutions and a projection shortcut."""

    def __init__(self, in_channels, width, stride):
        super().__init__()
        last_conv = (width, 4 * width, 1, 1)
        convs = ((in_channels, width, 1, stride), (width, width, 3, 1), last_conv)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in convs
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in convs)
        self.shortcut = nn.Identity()
        if in_channels != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, 4 * width, 1, stride, bias=False),
                nn.BatchNorm2d(4 * width),
            )

    def forward(self, x):
        y = x
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = bn(conv(y))
            if i < 2:
                y = functional.relu(y)
        return functional.relu(self.shortcut(x) + y)


def build(name, num_classes):
    """Returns ResNet-20 if `name` is "resnet20", else ResNet-50, with He kernels."""
    if name == "resnet20":
        stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
        block, blocks_per_stage, width, channels = BasicBlock, (3, 3, 3), 16, 16
    else:
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False)]
        block, blocks_per_stage, width, channels = Bottleneck, (3, 4, 6, 3), 64, 64
    stem += [nn.BatchNorm2d(channels), nn.ReLU()]
    layers = [*stem, nn.MaxPool2d(3, 2, 1)] if name == "resnet50" else stem
    for stage, num_blocks in enumerate(blocks_per_stage):
        for block_index in range(num_blocks):
            stride = 2 if stage and not block_index else 1
            layers.append(block(channels, width * 2**stage, stride))
            channels = width * 2**stage * (4 if block is Bottleneck else 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network


def make_step(network, optimizer, compiled=False, precision=None):
    """Returns a function that makes a training step with images and labels.

    Args:
        network: Network whose images are uint8, (batch, channels, height, width).
        optimizer: Optimizer of the network's parameters.
        compiled: Whether `torch.compile` compiles the forward pass and the loss.
        precision: Dtype for autocast, such as `torch.bfloat16`. Default: no autocast.
    """
    device_type = next(network.parameters()).device.type

    def compute_loss(images, labels):
        with torch.autocast(device_type, precision, enabled=precision is not None):
            logits = network((images.float() - 127.5) / 64)
        return functional.cross_entropy(logits.float(), labels)

    if compiled:
        compute_loss = torch.compile(compute_loss)

    def step(images, labels):
        optimizer.zero_grad()
        loss = compute_loss(images, labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
