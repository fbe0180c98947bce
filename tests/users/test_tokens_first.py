"""Transformers whose tokens stand before the batch, (L, N, C), as in CLIP's own code and DETR's, are like any other."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import saliency
from tests.cases import NOTICES, Net, VisionTransformer

pytestmark = NOTICES

OPTIONS: dict[str, dict[str, Any]] = {
    "rise": {"num_masks": 8, "num_cells": 3},
    "extremal_perturbation": {"areas": (0.2,), "max_iter": 3, "step": 3, "sigma": 3},
    "occlusion": {"sliding_window_shapes": 3},
    "full_grad": {"saliency_layer": ""},
}
LAYERS = {"the layer found": None, "a normalisation": "blocks.1.norm1", "a block": "blocks.0"}
NAMES = [
    name
    for name, method in saliency.METHODS.items()
    if not method.needs_pooling and name not in ("feature_permutation", "feature_ablation", "smooth_grad_cam_plus_plus")
]


class TokensFirst(VisionTransformer):
    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.attention.batch_first = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = self.blocks(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.head(self.norm(x)[:, 0])


def networks() -> tuple[VisionTransformer, TokensFirst]:
    torch.manual_seed(0)
    usual, first = VisionTransformer().double().eval(), TokensFirst().double().eval()
    first.load_state_dict(usual.state_dict())
    return usual, first


def images(samples: int) -> Tensor:
    return torch.rand(samples, 3, 12, 15, dtype=torch.float64)


X = images(2)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_the_map_of_the_same_network_with_the_batch_first(name, layer):
    method = saliency.METHODS[name]
    options = dict(OPTIONS.get(name, {}))
    if "saliency_layer" in method.options and not method.needs_attention:
        options.setdefault("saliency_layer", LAYERS[layer])
    elif LAYERS[layer] is not None:
        pytest.skip("it has no layer, or finds its own")
    usual, first = (
        method.function(model, images_, [1, 2], **options) for model, images_ in zip(networks(), PAIR, strict=True)
    )
    assert_close(first, usual)


PAIR = (images(2),) * 2


def test_as_many_images_as_tokens_of_a_network_that_turns_them_inside():
    """A decoder with the batch first, whose attention turns two of its three inputs and its result."""
    torch.manual_seed(0)
    decoder = nn.TransformerDecoderLayer(6, 2, 8, 0.0, batch_first=True)

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.patches(x).flatten(2).mT
        return s.head(s.decoder(x, 2 * x).mean(1))

    model = Net(forward, patches=nn.Conv2d(3, 6, 3, 3), decoder=decoder, head=nn.Linear(6, 4)).double().eval()
    x = images(20)
    each = torch.cat([saliency.grad_cam(model, one[None], 1) for one in x])
    assert_close(saliency.grad_cam(model, x, 1), each)


def test_a_class_token_that_joins_them_behind_the_turn():
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.patches(x).flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        return s.head((x + s.mixed(s.norm(x)).sum(0))[0])

    norm, mixed = nn.LayerNorm(6), nn.Linear(6, 6)
    model = Net(forward, patches=nn.Conv2d(3, 6, 3, 3), norm=norm, mixed=mixed, head=nn.Linear(6, 4)).double().eval()
    assert saliency.find_layer(model, X, target=1) == "norm"
    assert saliency.grad_cam(model, X, 1).shape == (2, 1, 4, 5)
    each = torch.cat([saliency.grad_cam(model, one[None], 1, "norm") for one in X])
    assert_close(saliency.grad_cam(model, X, 1, "norm"), each)


def test_what_is_asked_of_the_layer_has_the_batch_first():
    _, model = networks()
    whole = saliency.gradient_x_activation(model, X, 1, saliency_layer="blocks.1.norm1", reduction=None)
    assert whole.shape == (2, 21, 6)
    maps = saliency.grad_cam(
        model, X, 1, "blocks.1.norm1", layout=lambda x: x[:, 1:].unflatten(1, (4, 5)).movedim(-1, 1)
    )
    assert_close(maps, saliency.grad_cam(model, X, 1, "blocks.1.norm1"))


def test_the_layer_found_is_the_same():
    usual, first = (saliency.find_layer(model, X, target=1) for model in networks())
    assert first == usual
