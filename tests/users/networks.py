"""A network in a line: parts, and a function of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests import cases


class Net(cases.Net):
    """The same in float64."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__(function, **parts)
        self.double()


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def gradients(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of a sum of scores by autograd."""
    x = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient


def cnn() -> Net:
    """Three channels, five classes, a map at 'conv'."""
    return Net(
        lambda s, x: s.fc(s.conv(x).relu().mean((2, 3))), conv=nn.Conv2d(3, 6, 3, 2, padding=1), fc=nn.Linear(6, 5)
    )
