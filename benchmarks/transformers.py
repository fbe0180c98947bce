"""The measurements of attention methods, on a ViT in place of the workload's network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, MultiheadAttention, init
from torch.nn.functional import interpolate, linear
from torchvision.models import VisionTransformer

import saliency
from benchmarks.candidates import Run, Workload

CLASSES = 4  # of each image
PATCH = 16


class Size(NamedTuple):
    """The width of a ViT of 12 layers, and its heads."""

    width: int
    heads: int


BASE, TINY = Size(768, 12), Size(192, 3)


def with_vit(size: Size, scale: float = 1.0) -> Callable[[Workload], Workload]:
    """The workload of one image, brought to ``scale`` times its side, with an untrained ViT in the network's place.

    In a batch of several PyTorch's own attention is another, faster one where nobody looks inside.
    """

    def change(work: Workload) -> Workload:
        side = max(2, round(scale * work.input.shape[-1]) // PATCH) * PATCH
        input = interpolate(work.input[:1], (side, side))
        model = _vit(size, side).to(input.device)
        return work._replace(model=model, input=input, target=work.target[:1], targets=work.targets[:1, :CLASSES])

    return change


@cache
def _vit(size: Size, side: int) -> VisionTransformer:
    model = VisionTransformer(side, PATCH, 12, size.heads, size.width, 4 * size.width).eval().requires_grad_(False)
    init.normal_(model.heads.head.weight, std=0.02)  # which starts at zero
    return model


def our_rollout(work: Workload) -> Run:
    return lambda: saliency.attention_rollout(work.model, work.input, work.target)


def our_transformer_attribution(work: Workload) -> Run:
    return lambda: saliency.transformer_attribution(work.model, work.input, work.target)


def our_transformer_attribution_of_all_targets(work: Workload) -> Run:
    return lambda: saliency.transformer_attribution(work.model, work.input, work.targets)


def gradients_one_after_the_other(work: Workload) -> Run:
    """Forward and backward down to the input, for one class of each image after the other."""

    def run() -> list[Tensor]:
        found = []
        for column in work.targets.T:
            input = work.input.detach().requires_grad_()
            scores = work.model(input).gather(1, column[:, None].to(input.device))
            found.append(torch.autograd.grad(scores.sum(), input)[0])
        return found

    return run


def gradients_of_one_forward_pass(work: Workload) -> Run:
    """Forward once, and backward down to the input for each class."""

    def run() -> list[Tensor]:
        input = work.input.detach().requires_grad_()
        scores = work.model(input).gather(1, work.targets.to(input.device)).sum(0)
        return [torch.autograd.grad(score, input, retain_graph=True)[0] for score in scores]

    return run


def spelled_out(work: Workload) -> Run:
    """Transformer attribution as its authors' code has it: attention spelled out, all matrices kept with gradients."""

    def run() -> Tensor:
        with _spelling_out(work.model) as attentions:
            input = work.input.detach().requires_grad_()
            scores = work.model(input)[range(len(work.target)), work.target]
            gradients = torch.autograd.grad(scores.sum(), attentions)
        tokens = attentions[0].shape[-1]
        relevance = torch.eye(tokens, device=input.device).expand(len(input), -1, -1)
        for attention, gradient in zip(attentions, gradients, strict=True):
            relevance = relevance + (attention.detach() * gradient).relu().mean(1) @ relevance
        return relevance[:, 0, 1:]

    return run


@contextmanager
def _spelling_out(model: Module) -> Iterator[list[Tensor]]:
    """Multi-head attention with a softmax, which notes its attentions."""
    attentions: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, MultiheadAttention)]
    try:
        for layer in layers:
            layer.forward = _spelled(layer, attentions)  # type: ignore[method-assign]
        yield attentions
    finally:
        for layer in layers:
            del layer.forward


def _spelled(layer: MultiheadAttention, attentions: list[Tensor]) -> Callable[..., tuple[Tensor, None]]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        parts = linear(x, layer.in_proj_weight, layer.in_proj_bias).unflatten(2, (3, layer.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        attentions.append(attention)
        return layer.out_proj((attention @ v).transpose(1, 2).flatten(2)), None

    return forward
