"""Watching: what a pass shows is noted, and nothing of it is changed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency.engine.watching import Grid, Watching, is_convolutional

X = torch.rand(2, 3, 8, 12)
AT = torch.ops.aten


@pytest.mark.parametrize(
    ("function", "sides"),
    [
        (lambda: F.conv2d(X, torch.rand(5, 3, 3, 3), None, 2, 1), (4, 6)),
        (lambda: AT.conv2d.default(X, torch.rand(5, 3, 2, 2), stride=[2, 2]), (4, 6)),
        (lambda: F.conv_transpose2d(X, torch.rand(3, 5, 2, 2), stride=2), (16, 24)),
        (lambda: F.conv1d(X[:, 0], torch.rand(5, 8, 3)), (10,)),
        (lambda: nn.Conv3d(3, 2, 2, 2)(X[..., None].expand(2, 3, 8, 12, 6)), (4, 6, 3)),
        (lambda: F.max_pool2d(X, 4), (2, 3)),
        (lambda: nn.AvgPool2d(2)(X), (4, 6)),
        (lambda: F.adaptive_max_pool2d(X, (2, 5)), (2, 5)),
        (lambda: F.interpolate(X, scale_factor=0.5), (4, 6)),
        (lambda: F.pixel_unshuffle(X, 2), (4, 6)),
        (lambda: F.unfold(X, (3, 2), dilation=(2, 1), padding=(1, 0), stride=2), (3, 6)),
        (lambda: nn.Unfold(kernel_size=3, padding=1)(X), (8, 12)),
        (lambda: F.unfold(input=X, kernel_size=4, stride=4), (2, 3)),
        (lambda: X.unfold(2, 2, 2).unfold(3, 3, 3), (4, 4)),
        (lambda: X.permute(0, 2, 3, 1).flatten(1, 2), (8, 12)),
        (lambda: torch.reshape(X.movedim(1, -1), (2, 96, 3)), (8, 12)),
        (lambda: torch.rand(2, 96, 3).unflatten(1, (8, 12)), (8, 12)),
        (lambda: AT.view.default(torch.rand(2, 96, 3), [2, 8, 12, 3]), (8, 12)),
        (lambda: torch.rand(2, 24, 5).view(2, 2, 3, 4, 5), (2, 3, 4)),
    ],
)
def test_what_makes_a_grid(function, sides):
    with Watching() as watch:
        function()
    assert watch.seen[-1][:2] == (2, sides)
    assert watch.of(X) == [grid for grid in watch.seen if grid.rows == 2]
    assert watch.of(X[:1]) == watch.of(torch.tensor(1.0)) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.rand(2, 5, 12).view(2, 5, 3, 4).transpose(1, 2),  # heads
        lambda: torch.rand(2, 3, 5, 4).transpose(1, 2).flatten(2),
        lambda: torch.rand(8, 5, 4).view(2, 4, 5, 4),
        lambda: torch.rand(2, 3, 1, 1).flatten(2),
        lambda: F.adaptive_avg_pool2d(X, 1),
        lambda: torch.cat([X, X], 1),
        lambda: torch.nested.nested_tensor([torch.rand(3, 2, 4), torch.rand(4, 2, 4)]).reshape(2, -1, 8),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_makes_none(function):
    with Watching() as watch:
        function()
    assert watch.seen == []


def test_a_join_says_where_the_cells_stand():
    with Watching() as watch:
        tokens = F.conv2d(X, torch.rand(5, 3, 4, 4), stride=4).flatten(2).mT
        extra = torch.rand(2, 3, 5)
        torch.cat((extra, tokens, extra), dim=-2)
        torch.cat([tokens, tokens], 1)  # which of them, nobody knows
        torch.cat([tokens, tokens], 2)
    assert watch.seen == [Grid(2, (2, 3), 6), Grid(2, (2, 3), 12, 3)]


def test_nothing_is_changed():
    net = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Flatten(2), nn.Linear(24, 5))
    x = X.clone().requires_grad_()
    plain = net(x)
    (expected,) = torch.autograd.grad(plain.sum(), x)
    with Watching():
        watched = net(x)
    assert torch.equal(watched, plain)
    assert torch.equal(torch.autograd.grad(watched.sum(), x)[0], expected)


def test_layers_that_need_not_be_watched():
    block = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    assert all(map(is_convolutional, (nn.Sequential(*block), block[0], block[1], nn.Conv3d(1, 1, 1))))
    watched = (nn.Sequential(*block, nn.Linear(2, 2)), nn.ReLU(), nn.Conv1d(3, 4, 1), nn.Sequential(block[0]))
    assert not any(map(is_convolutional, watched))
