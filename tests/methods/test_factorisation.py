"""Deep feature factorisation: what its factors are, and that they are found."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from saliency import deep_feature_factorization
from saliency.methods.factorisation import factorise
from tests import cases


def test_the_updates_never_raise_the_error():
    a = torch.rand(30, 12, generator=torch.Generator().manual_seed(0)).double()
    errors = []
    for steps in range(0, 60, 3):
        h, w = factorise(a, 4, steps)
        assert min(h.min(), w.min()) >= 0
        torch.testing.assert_close(w.norm(dim=1), torch.ones(4, dtype=a.dtype))
        assert h.norm(dim=0).diff().max() <= 0  # the strongest first
        errors.append(float((a - h @ w).norm()))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def planted(images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, C, 6, 8) of three concepts, each somewhere else; where they are, and what they are."""
    places = torch.zeros(images, 3, 6, 8, dtype=torch.float64)
    for n in range(images):
        places[n, 0, :2, n : n + 3] = 3
        places[n, 1, 3:, :2] = 2
        places[n, 2, 4:, 5:] = 1
    concepts = torch.eye(3, 7, dtype=torch.float64) + torch.eye(3, 7, dtype=torch.float64).roll(3, 1)
    return torch.einsum("nkhw,kc->nchw", places, concepts), places, concepts


def test_concepts_that_were_planted_are_found_in_all_images_at_once():
    x, places, concepts = planted(4)
    maps, found = deep_feature_factorization(nn.Sequential(nn.Identity()), x, "0", n_components=3, max_iter=1000)
    assert maps.shape == (4, 3, 6, 8)
    assert found.shape == (3, 7)
    length = concepts.norm(dim=1)
    torch.testing.assert_close(found, concepts / length[:, None], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps, places * length.view(1, 3, 1, 1), rtol=1e-4, atol=1e-4)


def test_tokens_sizes_and_seeds():
    case = cases.TRANSFORMER
    model, input = case.model(), case.input()
    maps, concepts = deep_feature_factorization(model, input, None, n_components=2, resize=True)
    assert (maps.shape, concepts.shape) == ((2, 2, *input.shape[2:]), (2, 6))
    again = deep_feature_factorization(model, input, None, n_components=2, resize=True)
    assert torch.equal(again[0], maps)
    other = deep_feature_factorization(model, input, None, n_components=2, seed=1, max_iter=1)
    assert not torch.equal(other[1], concepts)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_components", 0),
        ("max_iter", 2.0),
        ("seed", -1),
        ("resize", 3),
        ("layout", "NHWC"),
        ("saliency_layer", ["a"]),
    ],
)
def test_options_that_make_no_sense(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument}=.*expected .*\.$"):
        deep_feature_factorization(cases.IN_PLACE.model(), cases.IN_PLACE.input(), **{argument: value})
