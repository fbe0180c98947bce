"""The network and the images on which CAMs are compared with their formulas."""

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions and a head; gradients of both signs, and one channel that is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3)
        self.tail = nn.Conv2d(5, 4, 3)
        self.head = nn.Linear(4, 6)
        with torch.no_grad():
            self.layer.weight[2] = 0
            self.layer.bias[2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tail(torch.relu(self.layer(x)))).mean((2, 3)))


@pytest.fixture
def case():
    """A model, two images, and the activation of its ``layer`` with the gradient of the classes 4 and 1."""
    torch.manual_seed(3)
    model = Net().double()
    input = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    x = model.layer(input).detach().requires_grad_()
    output = model.head(torch.tanh(model.tail(torch.relu(x))).mean((2, 3)))
    (dx,) = torch.autograd.grad(output[0, 4] + output[1, 1], x)
    return model, input, x.detach(), dx
