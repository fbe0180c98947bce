"""Factorisation: the concepts that compose the activations of several images, and where each of them is."""

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input, make_call
from saliency.engine.checks import check_count, check_seed, shown
from saliency.engine.driver import saliency
from saliency.engine.layers import Layer
from saliency.engine.layouts import Layout
from saliency.engine.maps import Resize, check_map_options, resize_saliency, safe_divide
from saliency.engine.signatures import ModelOptions
from saliency.engine.state import full_precision, make_generator


def factorise(a: Tensor, k: int, max_iter: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    r"""Factors :math:`A \approx H W` of a non-negative matrix (L, C), with H (L, K), W (K, C) :math:`\ge 0`.

    The K concepts in W have length 1 and are sorted by what they contribute, largest first. Multiplicative updates,
    which never increase :math:`\|A - H W\|`: Lee and Seung, NeurIPS 2000.
    """
    generator = make_generator(a.device, seed)
    h, w = (a.new_empty(shape).uniform_(generator=generator) for shape in ((len(a), k), (k, a.shape[1])))
    for _ in range(max_iter):
        h = h * safe_divide(a @ w.mT, h @ (w @ w.mT))
        w = w * safe_divide(h.mT @ a, (h.mT @ h) @ w)
    length = w.norm(dim=1)
    order = (h.norm(dim=0) * length).argsort(descending=True)
    return (h * length)[:, order], safe_divide(w, length[:, None])[order]


def deep_feature_factorization(
    model: Module,
    input: Input,
    saliency_layer: Layer = None,
    n_components: int = 4,
    max_iter: int = 200,
    seed: int = 0,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    layout: Layout = None,
    **options: Unpack[ModelOptions],
) -> tuple[Tensor, Tensor]:
    r"""Deep feature factorisation: K concepts that a layer finds in a batch of images, and where it finds them.

    .. math:: \max(0, x_{ncu}) \approx \sum_k s_{nku} \, w_{kc}, \quad s, w \ge 0, \quad \|w_k\| = 1

    Returns the maps (N, K, h, w), strongest concept first, and the concepts (K, C). The images of a batch share the
    concepts, so what they have in common appears in one map; no target is used. To label the concepts, apply to
    them the classifier that follows global average pooling. Collins et al., Deep Feature Factorization for Concept
    Discovery, ECCV 2018. Options and errors: see :func:`saliency`.
    """
    for argument, count in (("n_components", n_components), ("max_iter", max_iter)):
        check_count(argument, count)
    check_seed(seed)
    if isinstance(saliency_layer, (list, tuple)):
        raise ValueError(f"saliency_layer={shown(saliency_layer)} is not one layer; expected a name, a module or None.")
    image = make_call(model, input).image
    check_map_options(resize, resize_mode, 0, layout, image)
    x: Tensor = saliency(
        model,
        input,
        None,
        saliency_layer,
        gradient_to_saliency=torch.relu,
        get_backward_gradient=None,
        layout=layout,
        **options,
    )
    rows = x.flatten(2).mT.flatten(0, 1).to(torch.promote_types(x.dtype, torch.float32))
    with full_precision(rows.device):
        maps, concepts = factorise(rows, n_components, max_iter, seed)
    maps = maps.view(len(x), -1, n_components).mT.unflatten(2, x.shape[2:]).to(x.dtype)
    return resize_saliency(image, maps, resize, resize_mode), concepts.to(x.dtype)
