"""I3D (Carreira & Zisserman 2017, arXiv 1705.07750): the network whose logits are the features of FVD.

The layers and their names are those of DeepMind's RGB network for Kinetics-400. `rad-bench weights fvd` fetches its
weights. All layers pad as TensorFlow's 'SAME' does: half on each side, and what is odd at the end.

Letters: B clips, T frames, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224  # pixels of a frame's side
CLASSES = 400  # of Kinetics; each has a logit
EPSILON = 1e-3  # of batch normalisation
MIXED = {  # name -> channels of its branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooling then 1x1
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def same_padding(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad [B, C, T, H, W] as TensorFlow's 'SAME' does, so that a side of n gives ceil(n / stride)."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


class Unit(nn.Module):
    """Convolution, batch normalisation without a scale, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, kernel, kernel, kernel))
        nn.init.kaiming_normal_(self.weight)
        self.shift = nn.Parameter(torch.zeros(out))
        self.register_buffer("mean", torch.zeros(out))
        self.register_buffer("variance", torch.ones(out))
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv3d(same_padding(x, self.kernel, self.stride), self.weight, stride=self.stride)
        return F.batch_norm(x, self.mean, self.variance, bias=self.shift, eps=EPSILON).relu()  # type: ignore[arg-type]


class Pool(nn.Module):
    """The largest value of each window."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(same_padding(x, self.kernel, self.stride, -math.inf), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches over the same input, their channels one after the other."""

    def __init__(self, channels: int, out: Sequence[int]) -> None:
        super().__init__()
        first, reduce_1, second, reduce_2, third, fourth = out
        self.Branch_0 = _named(Conv3d_0a_1x1=Unit(channels, first))
        self.Branch_1 = _named(Conv3d_0a_1x1=Unit(channels, reduce_1), Conv3d_0b_3x3=Unit(reduce_1, second, 3))
        self.Branch_2 = _named(Conv3d_0a_1x1=Unit(channels, reduce_2), Conv3d_0b_3x3=Unit(reduce_2, third, 3))
        pool = Pool((3, 3, 3), (1, 1, 1))
        self.Branch_3 = _named(MaxPool3d_0a_3x3=pool, Conv3d_0b_1x1=Unit(channels, fourth))
        self.channels = first + second + third + fourth

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


class Logits(nn.Module):
    """Mean over space and pairs of frames, a linear layer, mean over time: [B, C, T, 7, 7] -> [B, 400]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(CLASSES, channels, 1, 1, 1))
        nn.init.kaiming_normal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(F.avg_pool3d(x, (2, 7, 7), 1), self.weight, self.bias).flatten(2).mean(2)


def i3d() -> nn.Sequential:
    """Return the network with random weights: clips [B, 3, T, 224, 224] in [-1, 1], T at least 9 -> logits [B, 400]."""
    layers: dict[str, nn.Module] = {
        "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
        "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
        "Conv3d_2b_1x1": Unit(64, 64),
        "Conv3d_2c_3x3": Unit(64, 192, 3),
        "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
    }
    pools = {"4b": ("MaxPool3d_4a_3x3", 3), "5b": ("MaxPool3d_5a_2x2", 2)}  # before these
    channels = 192
    for name, out in MIXED.items():
        if name in pools:
            pool, kernel = pools[name]
            layers[pool] = Pool((kernel,) * 3, (2, 2, 2))
        mixed = Mixed(channels, out)
        layers[f"Mixed_{name}"], channels = mixed, mixed.channels
    return _named(**layers, Logits=Logits(channels)).eval().requires_grad_(False)


def _named(**layers: nn.Module) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence
