"""Grids of convolutions, and of modules that hold some, whose parts do not say how they lay their cells out."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saliency import grad_cam
from saliency.engine.watching import Watching
from tests.users.networks import Net, gradients, rand


def cam(tail: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Grad-CAM of a score by hand, of (N, C, *grid)."""
    axes = tuple(range(2, x.ndim))
    return (x * gradients(tail, x).mean(axes, keepdim=True)).sum(1, keepdim=True).relu().detach()


class Embed(nn.Module):
    """A patch convolution with its norm, and a forward pass of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.conv(x)))


@pytest.mark.parametrize("layer", ["embed", None])
@pytest.mark.parametrize(
    ("lay_out", "as_map"),
    [
        (lambda y: y.permute(0, 2, 3, 1), lambda y: y.movedim(-1, 1)),
        (lambda y: y.flatten(2).mT, lambda y: y.mT.unflatten(2, (6, 6))),
        (lambda y: y.movedim(1, -1).flatten(1, 2), lambda y: y.mT.unflatten(2, (6, 6))),
    ],
    ids=["channels last", "tokens", "tokens, from channels last"],
)
def test_a_module_of_convolutions_that_ends_in_another_layout(lay_out, as_map, layer):
    """The image's size, which the model changes, would say 3 x 4 cells, or rows of channels."""
    net = Net(
        lambda s, x: s.fc(s.embed(F.interpolate(x, (24, 24))).sigmoid().flatten(1, -2).mean(1)),
        embed=Embed(lay_out),
        fc=nn.Linear(5, 2),
    )
    x = rand(2, 3, 30, 40)
    cells = as_map(net.embed(F.interpolate(x, (24, 24)))).detach()
    expected = cam(lambda cells: net.fc(cells.sigmoid().mean((2, 3)))[:, 1], cells)
    assert expected.shape == (2, 1, 6, 6)
    torch.testing.assert_close(grad_cam(net, x, 1, layer), expected)


@pytest.mark.parametrize("wrap", [nn.Identity, lambda: nn.BatchNorm2d(6).eval()], ids=["alone", "with a norm"])
def test_the_channels_of_a_convolution_are_no_rows(wrap):
    """6 channels x 8 rows look like 30 x 40 pixels; 8 x 8 cells do not."""
    net = Net(
        lambda s, x: s.fc(s.norm(s.conv(F.interpolate(x, (24, 24)))).sigmoid().mean((2, 3))),
        conv=nn.Conv2d(3, 6, 3, 3),
        norm=wrap(),
        fc=nn.Linear(6, 2),
    )
    x = rand(1, 3, 30, 40)
    for layer in ("conv", "norm", None):
        at = net.conv(F.interpolate(x, (24, 24))).detach()
        at = at if layer == "conv" else net.norm(at).detach()
        tail = (lambda y: y) if layer != "conv" else net.norm
        expected = cam(lambda at, tail=tail: net.fc(tail(at).sigmoid().mean((2, 3)))[:, 1], at)
        torch.testing.assert_close(grad_cam(net, x, 1, layer), expected)


@pytest.mark.parametrize("shape", [(2, 400), (2, 1, 400)])
@pytest.mark.parametrize("layer", ["conv", None])
def test_a_convolution_over_a_spectrogram(shape, layer):
    """The map has more axes than the signal that the model is called with."""
    window = torch.hann_window(32, dtype=torch.float64)

    def spectrogram(x: Tensor) -> Tensor:
        return torch.stft(x.flatten(1), 32, window=window, return_complex=True).abs()[:, None]

    net = Net(
        lambda s, x: s.fc(s.conv(spectrogram(x)).sigmoid().mean((2, 3))), conv=nn.Conv2d(1, 4, 3), fc=nn.Linear(4, 2)
    )
    x = rand(*shape)
    at = net.conv(spectrogram(x)).detach()
    expected = cam(lambda at: net.fc(at.sigmoid().mean((2, 3)))[:, 1], at)
    torch.testing.assert_close(grad_cam(net, x, 1, layer), expected)


@pytest.mark.parametrize(("layer", "convolutions"), [("conv", 0), ("embed", 1), ("norm", 2)])
def test_no_more_is_watched_than_a_grid_needs(monkeypatch, layer, convolutions):
    """Of a convolution nothing, of a block of convolutions its own operations, of tokens the whole pass."""
    noted = []
    original = Watching.__torch_function__

    def counting(self, function, *args):
        noted.append(function)
        return original(self, function, *args)

    monkeypatch.setattr(Watching, "__torch_function__", counting)
    net = Net(
        lambda s, x: s.fc(s.norm(s.embed(s.conv(x))).mean(1)),
        conv=nn.Conv2d(3, 3, 1),
        embed=Embed(lambda y: y.flatten(2).mT),
        norm=nn.LayerNorm(5),
        fc=nn.Linear(5, 2),
    )
    assert grad_cam(net, rand(1, 3, 16, 20), 1, layer).shape == (1, 1, *((16, 20) if layer == "conv" else (4, 5)))
    assert sum(getattr(function, "__name__", "") == "conv2d" for function in noted) == convolutions
    assert bool(noted) == bool(convolutions)
