"""Targets over embeddings: what makes an image similar to a text or to another image, and which pairs of parts do.

A model that embeds images has no classes; its scores are similarities to reference embeddings. With CLIP or SigLIP of
Hugging Face, K prompts from one forward pass::

    text = clip.get_text_features(**tokenizer(prompts, padding=True, return_tensors="pt"))  # of K prompts
    maps = grad_cam(ImageEncoder(clip), pixels, cosine_similarity(text))  # (N, K, h, w)

A target is a function of the output, and so is any combination of targets: how much more an image resembles a cat than
a dog, how much it differs from a concept, or the probability of each prompt among all::

    lambda output: cosine_similarity(cat)(output) - cosine_similarity(dog)(output)
    lambda output: 1 - cosine_similarity(concept)(output)
    lambda output: (100 * cosine_similarity(text)(output)).softmax(1)
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from saliency.engine.checks import check_model, check_tensor, describe, is_positive_int, shown
from saliency.engine.layers import Layer
from saliency.engine.outputs import Output, main_output

Embedding: TypeAlias = Callable[[Output], Tensor]  # the model's output -> (N, D)
_FIELDS = ("image_embeds", "image_features", "pooler_output")  # fields that hold an image's embedding
_ENCODERS = ("get_image_features", "encode_image")  # of Hugging Face; of open_clip and OpenAI's CLIP


def embedding_of(output: object) -> Tensor:
    """The embedding (N, D) in a model's output: a named field, or else the main output.

    The names are those of Hugging Face and open_clip: ``image_embeds``, ``image_features``, ``pooler_output``.

    >>> embedding_of({"last_hidden_state": torch.zeros(1, 5, 2), "pooler_output": torch.ones(1, 2)})
    tensor([[1., 1.]])
    """
    found = _named(output)
    result: Tensor = main_output(output) if found is None else found
    return result


def cosine_similarity(references: Output, embedding: Embedding = embedding_of) -> Callable[[Output], Tensor]:
    r"""The target :math:`\cos(\phi(x), r_k)`: how similar an image is to each of K references.

    ``references`` are constants: (K, D) gives scores (N, K) from one forward pass, (D,) gives scores (N,). An output
    with a field that :func:`embedding_of` knows is as good, as ``get_text_features`` of transformers 5 returns.
    ``embedding`` extracts :math:`\phi(x)` (N, D) from the model's output. For a reference per image, use
    ``[cosine_similarity(reference) for reference in references]``. Raises ``ValueError`` for references of another
    length D.

    >>> cosine_similarity(torch.tensor([[2.0, 0.0], [3.0, 4.0]]))(torch.tensor([[1.0, 0.0]]))
    tensor([[1.0000, 0.6000]])
    """
    return _similarity(references, embedding, partial(F.normalize, dim=-1))


def dot_product(references: Output, embedding: Embedding = embedding_of) -> Callable[[Output], Tensor]:
    r"""The target :math:`\phi(x) \cdot r_k`. Arguments, shapes and errors: see :func:`cosine_similarity`.

    >>> dot_product(torch.tensor([3.0, 4.0]))(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([3., 4.])
    """
    return _similarity(references, embedding, lambda x: x)


class ImageEncoder(Module):
    """The image encoder of a model of images and texts, from images (N, C, H, W) to embeddings (N, D).

    For models with a method ``get_image_features`` (Hugging Face's CLIP, SigLIP, ALIGN, BLIP …) or ``encode_image``
    (open_clip, OpenAI's CLIP); raises ``ValueError`` for others. Models that are image encoders already, such as
    ``clip.visual`` of open_clip, ``CLIPVisionModelWithProjection`` or timm's with ``num_classes=0``, do not need
    it. Layers are named after ``model``: ``'model.vision_model.encoder.layers.10'``.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        check_model(model)
        self.model = model
        self.encoder = next((name for name in _ENCODERS if callable(getattr(model, name, None))), "")
        if not self.encoder:
            raise ValueError(
                f"model={shown(model)} has no method {' or '.join(_ENCODERS)}; expected a model of images and texts."
            )

    def forward(self, images: Tensor, **options: object) -> Tensor:
        """Embed images. ``options`` are those of the model's own method."""
        return embedding_of(getattr(self.model, self.encoder)(images, **options))


def bilrp(
    model: Module,
    first: Tensor,
    second: Tensor,
    method: Callable[..., Tensor],
    saliency_layer: Layer | None = "",
    pool: int | tuple[int, ...] = 14,
    embedding: Embedding = embedding_of,
    **options: object,
) -> Tensor:
    r"""BiLRP: how much each pair of positions in two images contributes to the similarity of their embeddings.

    .. math:: R_{n,u,v} = \sum_{k=1}^D R^{(k)}_u(a_n) \, R^{(k)}_v(b_n), \quad \phi(a) \cdot \phi(b) = \sum_k \phi_k(a)
              \, \phi_k(b)

    ``method`` makes the maps :math:`R^{(k)}` (N, D, h, w) of all D entries of the embedding, from one forward pass
    for ``first`` and one for ``second``, images (N, C, H, W): ``lrp``, or ``linear_approx``, which is exact for
    ReLU networks without biases. Maps are summed over ``pool`` cells along each axis, or (height, width), at most
    their resolution. Returns (N, h, w, h', w'), which sums to the dot product if the method is complete.
    ``options`` are the method's. D maps of each image are in memory at once. Raises ``ValueError`` for images that
    cannot be paired. Eberle et al., Building and Interpreting Deep Similarity Models, TPAMI 2022.
    """
    check_tensor("first", first)
    check_tensor("second", second)
    if first.shape[:1] != second.shape[:1]:
        raise ValueError(f"second={describe(second)} cannot be paired; expected {len(first)} images, as in first.")
    sizes = pool if isinstance(pool, tuple) else (pool,) * (first.ndim - 2)
    if len(sizes) != first.ndim - 2 or not all(map(is_positive_int, sizes)):
        raise ValueError(f"pool={shown(pool)} is not a number of cells; expected an int >= 1, or one per axis.")
    if not callable(method):
        raise ValueError(f"method={shown(method)} is not a method; expected a function such as linear_approx.")
    a, b = (_pooled(method(model, images, embedding, saliency_layer, **options), sizes) for images in (first, second))
    pairs = torch.einsum("nkp,nkq->npq", a.flatten(2), b.flatten(2))
    return pairs.view(len(a), *a.shape[2:], *b.shape[2:])


def _named(output: object) -> Tensor | None:
    """The tensor in the first of the fields that hold an image's embedding."""
    named = (output.get(name) if isinstance(output, Mapping) else getattr(output, name, None) for name in _FIELDS)
    return next((tensor for tensor in named if isinstance(tensor, Tensor)), None)


def _similarity(
    references: object, embedding: Embedding, scale: Callable[[Tensor], Tensor]
) -> Callable[[Output], Tensor]:
    """The target of the products of scaled embeddings and references: (N, K), or (N,) for a single reference."""
    given = references if isinstance(references, Tensor) else _named(references)
    if given is None or not given.is_floating_point() or given.ndim not in (1, 2):
        raise ValueError(f"references={shown(references)} are not embeddings; expected a tensor (D,) or (K, D).")
    if not callable(embedding):
        raise ValueError(f"embedding={shown(embedding)} is not a function; expected a function of the model's output.")
    with torch.inference_mode(False):  # in which tensors cannot join a graph
        constant = given.detach().clone()

    def score(output: Output) -> Tensor:
        x = embedding(output)
        if not isinstance(x, Tensor) or x.ndim > 2 or x.shape[-1:] != constant.shape[-1:]:
            raise ValueError(
                f"references={describe(constant)} do not fit an embedding that is {describe(x)}; expected (N, D) with "
                "the same D, which embedding= may extract from the output."
            )
        # To backward rules, this is a linear layer: a classifier whose weights are the references.
        return F.linear(scale(x), scale(constant.to(x)))

    return score


def _pooled(maps: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The sums of maps (N, K, ...) over cells along each axis, whose sizes differ by at most one position."""
    for axis, size in enumerate(sizes, 2):
        side = maps.shape[axis]
        count = min(size, side)
        cells = torch.arange(side, device=maps.device) * count // side
        shape = (*maps.shape[:axis], count, *maps.shape[axis + 1 :])
        maps = maps.new_zeros(shape).index_add_(axis, cells, maps)
    return maps
