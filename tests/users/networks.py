"""A network in a line: parts, and a function of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """``Net(lambda s, x: s.fc(x), fc=Linear(2, 2))``, in float64 and in evaluation mode."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)
        self.double().eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


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
