"""A small residual network that names the shapes in a generated scene, with ResNet's layer names."""

from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from saliency.engine.checks import shown

from .generator import CLASSES

WEIGHTS = Path(__file__).with_name("scene_network.pt")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, h, w) to (N, channels, h / stride, w / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        result: Tensor = self.relu(out)
        return result


class SceneNet(nn.Module):
    """Residual network from images (N, 3, 128, 128) in [0, 1] to logits (N, 8), one for each class of scenes.

    Several classes can be in one image: ``logits.sigmoid()`` is the probability of each. ``layer4`` gives
    (N, 80, 16, 16). The weights are random; :func:`scene_network` loads trained ones.

    >>> SceneNet()(torch.zeros(2, 3, 128, 128)).shape
    torch.Size([2, 8])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 5, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(ResidualBlock(24, 24, 2))
        self.layer2 = nn.Sequential(ResidualBlock(24, 48, 2))
        self.layer3 = nn.Sequential(ResidualBlock(48, 64))
        self.layer4 = nn.Sequential(ResidualBlock(64, 80))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(80, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [0, 1] to logits (N, 8)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def scene_network(weights: bool | str | PathLike[str] = True) -> SceneNet:
    """Build a :class:`SceneNet` in eval mode, on the CPU, in float32.

    ``weights`` is True for the embedded trained weights, False for random ones, or the path of a file with a state
    dict, as ``benchmarks/train_scenes.py`` writes it. ValueError if the file is missing or does not fit.

    >>> scene_network().training
    False
    """
    accepted = "True, False or the path of a state dict of a SceneNet is accepted"
    if not isinstance(weights, (bool, str, PathLike)):
        raise ValueError(f"weights={shown(weights)} is not a path; {accepted}.")
    if weights is False:
        return SceneNet().eval()
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        network = SceneNet().eval()
    path = WEIGHTS if weights is True else weights
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ValueError(f"weights={weights!r} cannot be read from {path}; {accepted}.") from error
    return network
