"""Two small networks that classify the shapes in a generated scene: a ResNet and a vision transformer."""

from os import PathLike
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from saliency.engine.checks import shown

from .generator import CLASSES

WEIGHTS = Path(__file__).with_name("scene_network.pt")
VIT_WEIGHTS = Path(__file__).with_name("scene_network_vit.pt")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a 1x1 convolution where the shape changes."""

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
    """Residual network from images (N, 3, 128, 128) in [0, 1] to logits (N, 8), one per class of scenes.

    An image can hold several classes: ``logits.sigmoid()`` is the probability of each. ``layer4`` returns (N, 80,
    16, 16). The weights are random; :func:`scene_network` loads trained ones.

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


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, T, C)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens (N, T, C)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, T, C / heads)
        out: Tensor = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return result


class TransformerBlock(nn.Module):
    """Attention and an MLP, each with layer normalisation in front and a residual connection."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, C) to tokens (N, T, C)."""
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class SceneTransformer(nn.Module):
    """Vision transformer from images (N, 3, 128, 128) in [0, 1] to logits (N, 8), like those of :class:`SceneNet`.

    A convolutional stem makes 16 x 16 tokens of 8 x 8 pixels each; four blocks follow, and the head reads the class
    token (the first of 257). Layers have timm's names. The weights are random; :func:`scene_network` loads trained
    ones. For images of other sizes, positional embeddings are interpolated.

    >>> SceneTransformer()(torch.zeros(2, 3, 128, 128)).shape
    torch.Size([2, 8])
    """

    def __init__(self, channels: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            ResidualBlock(24, 48, 2),
            ResidualBlock(48, channels, 2),
        )
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, channels))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, channels, 16, 16))
        self.blocks = nn.Sequential(*(TransformerBlock(channels, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in [0, 1] to logits (N, 8)."""
        x = self.patch_embed(x)
        positions: Tensor = self.pos_embed
        if x.shape[2:] != positions.shape[2:]:
            positions = functional.interpolate(positions, x.shape[2:], mode="bilinear")
        x = (x + positions).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


@overload
def scene_network(weights: bool = True) -> SceneNet: ...


@overload
def scene_network(weights: Literal["vit"]) -> SceneTransformer: ...


@overload
def scene_network(weights: str | PathLike[str]) -> SceneNet | SceneTransformer: ...


def scene_network(weights: bool | str | PathLike[str] = True) -> SceneNet | SceneTransformer:
    """Build a :class:`SceneNet` or :class:`SceneTransformer` in eval mode, on the CPU, in float32.

    ``weights`` is True for the built-in trained weights of the ResNet, ``'vit'`` for those of the transformer,
    False for a ResNet with random weights, or the path of a state dict of either, as written by
    ``benchmarks/train_scenes.py``. Raises ``ValueError`` if the file is missing or does not fit.

    >>> scene_network().training, len(scene_network("vit").blocks)
    (False, 4)
    """
    accepted = "expected True, False, 'vit' or the path of a state dict of a SceneNet or SceneTransformer"
    if not isinstance(weights, (bool, str, PathLike)):
        raise ValueError(f"weights={shown(weights)} is not a path; {accepted}.")
    if weights is False:
        return SceneNet().eval()
    path = WEIGHTS if weights is True else VIT_WEIGHTS if weights == "vit" else weights
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten
            network = SceneTransformer().eval() if "cls_token" in state else SceneNet().eval()
        network.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"weights={weights!r} cannot be read from {path}; {accepted}.") from error
    return network
