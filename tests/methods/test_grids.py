"""Grids of layers: which entries stand where, there and back, and layers of several images."""

import pytest
import torch

from saliency.engine.call import make_call
from saliency.engine.site import make_site
from saliency.engine.state import evaluating
from saliency.methods.grids import grid_index, put_grid, replacing_grid
from tests import cases


def test_tokens_there_and_back():
    x = torch.randn(1, 7, 5)
    index = grid_index(x, (32, 48), None, None)
    assert index.shape == (5, 2, 3)
    for c in range(5):
        for i in range(2):
            for j in range(3):
                assert x.flatten()[index[c, i, j]] == x[0, 1 + 3 * i + j, c]
    grids = torch.randn(4, 5, 2, 3)
    placed = put_grid(x, index, grids)
    assert torch.equal(placed[:, 0], x[:, 0].expand(4, -1))
    assert torch.equal(placed[:, 1:], grids.flatten(2).mT)


def test_channels_last_there_and_back():
    x, grids = torch.randn(1, 4, 5, 9), torch.randn(3, 9, 4, 5)
    index = grid_index(x, (32, 40), None, None)
    assert torch.equal(x.flatten()[index], x[0].permute(2, 0, 1))
    assert torch.equal(put_grid(x, index, grids), grids.permute(0, 2, 3, 1))


def test_channels_first_there_and_back():
    x, grids = torch.randn(1, 7, 4, 5), torch.randn(3, 7, 4, 5)
    assert torch.equal(put_grid(x, grid_index(x, (32, 40), None, None), grids), grids)


def test_gradients_reach_the_grids():
    x = torch.randn(1, 7, 5, dtype=torch.float64)
    index = grid_index(x, (32, 48), None, None)
    grids = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda grids: put_grid(x, index, grids), (grids,))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("layer", r"layout='layer' makes no grid \(1, C, h, w\) of an activation \(1, 7, 5\); expected .*\."),
        (lambda x: x[:, 1:].mT.unflatten(2, (2, 3)) / 2, "changes an activation's values; expected .*"),
        (lambda x: x[:, [1, 1]].mT.unflatten(2, (1, 2)), "changes an activation's values"),
    ],
)
def test_errors(layout, message):
    with pytest.raises(ValueError, match=message):
        grid_index(torch.randn(1, 7, 5), (32, 48), layout, None)


def test_replacing_the_grid_of_several_images():
    case = cases.TRANSFORMER
    model, x = case.model(), case.input()
    images = torch.tensor([1, 0, 1])
    call = make_call(model, x)
    with evaluating(model):
        grids, run = replacing_grid(call, make_site(call, "blocks.0"), (12, 15), None)
        assert grids.shape == (2, 6, 4, 5)
        for at, output in run(grids[images], images):
            torch.testing.assert_close(output, model(x[images[at]]))
