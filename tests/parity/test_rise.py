"""TorchRay's RISE: its interpolation, the statistics of its masks, its maps from the same masks and from its own."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saliency.methods.masking import rise, rise_class
from saliency.methods.masks import interpolate, random_masks
from saliency.scenes import make_scenes, scene_network
from tests.parity.agreement import assert_agree
from tests.parity.networks import CASES, images, network

peer = pytest.importorskip("torchray.attribution.rise")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    ("size", "n"), [((224, 224), 7), ((96, 128), 7), ((50, 37), 5), ((20, 31), 2), ((9, 9), 8)], ids=str
)
def test_interpolation(size, n):
    reach = [math.ceil(side / n) for side in size]
    shifts = torch.tensor([[0, 0], [reach[0] - 1, 0], [0, reach[1] - 1], [reach[0] // 2, reach[1] // 3]])
    cells = (torch.rand(4, n, n) < 0.5).float()
    large = peer._upsample_reflect(cells[:, None], [side + more for side, more in zip(size, reach, strict=True)])
    pairs = zip(large, shifts.tolist(), strict=True)
    theirs = torch.stack([mask[:, y : y + size[0], x : x + size[1]] for mask, (y, x) in pairs])
    torch.testing.assert_close(interpolate(cells, shifts, size, torch.float32), theirs, rtol=0, atol=2e-6)


def their_masks(num_masks, size, num_cells, p, seed):
    """What TorchRay multiplies a white image with."""
    seen = []

    class Record(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.new_zeros(len(x), 1)

    peer.rise(Record(), torch.ones(1, 1, *size), seed=seed, num_masks=num_masks, num_cells=num_cells, p=p)
    return torch.cat(seen[1:])  # first comes the image itself


@pytest.mark.parametrize(("size", "num_cells", "p"), [((45, 60), 7, 0.5), ((32, 24), 3, 0.2)], ids=str)
def test_masks_have_the_same_statistics(size, num_cells, p):
    """Mean, deviation and pairwise correlation of pixels, within what they vary by from seed to seed."""
    at = torch.arange(0, size[0] * size[1], 37)
    seeds, upper = range(8), torch.ones(len(at), len(at)).triu(1).bool()

    def statistics(masks):
        pixels = masks.flatten(1)[:, at].double()
        return torch.cat([pixels.mean(0), pixels.std(0), torch.corrcoef(pixels.T)[upper]])

    theirs = torch.stack([statistics(their_masks(1000, size, num_cells, p, seed)) for seed in seeds])
    ours = torch.stack([statistics(random_masks(1000, size, num_cells, p, seed)) for seed in seeds])
    counts = [len(at), len(at), int(upper.sum())]
    for mine, peers in zip(ours.split(counts, 1), theirs.split(counts, 1), strict=True):
        error = ((mine.var(0) + peers.var(0)) / len(seeds)).mean().sqrt()
        apart = (mine.mean(0) - peers.mean(0)) / error
        assert apart.square().mean().sqrt() < 1.8
        assert apart.abs().max() < 6


@pytest.mark.parametrize("shape", [(64, 64), (72, 56)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_maps_from_the_same_masks(name, shape):
    model, input = network(name), images(72)[..., : shape[0], : shape[1]]
    masks = random_masks(12, shape)
    options = {"filter_masks": masks, "num_masks": 12, "batch_size": 5}
    theirs = peer.rise(deepcopy(model), input.clone(), **options)
    assert_agree(rise(model, input, **options), theirs)
    theirs = peer.rise_class(deepcopy(model), input.clone(), target=[1, 3], **options)
    assert_agree(rise_class(model, input, [1, 3], **options), theirs)


@pytest.mark.parametrize("resize", [True, (30, 20)], ids=str)
def test_resized_maps_of_a_column_of_scores(resize):
    class Column(nn.Module):
        def forward(self, x):
            return network("resnet18")(x)[..., None, None]

    model, input = Column(), images(48)
    options = {"filter_masks": torch.rand(9, 1, 48, 48), "num_masks": 9, "resize": resize, "resize_mode": "bicubic"}
    assert_agree(rise(model, input, **options), peer.rise(model, input.clone(), **options))


def correlation(a, b):
    """Of the map of every class, over its pixels."""
    a, b = (map.flatten(1).double() - map.flatten(1).double().mean(1, keepdim=True) for map in (a, b))
    return F.cosine_similarity(a, b, dim=1)


@pytest.mark.slow
def test_maps_are_as_near_to_torchrays_as_those_of_another_seed():
    model, near, own = scene_network(), [], []
    for scene in make_scenes(5):
        image = scene.image[None]
        first, second = (peer.rise(model, image, seed=seed, num_masks=250)[0] for seed in (0, 1))
        ours = rise(model, image, num_masks=250)[0]
        own.append(correlation(first, second))
        near.append((correlation(ours, first) + correlation(ours, second)) / 2)
    own, near = torch.stack(own).mean(1), torch.stack(near).mean(1)
    # Scenes are independent of each other: three standard errors of the mean difference, but not more than 0.1.
    assert (own - near).mean() < min(3 * float((own - near).std()) / math.sqrt(len(own)), 0.1)
