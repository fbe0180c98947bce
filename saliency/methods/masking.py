"""Masking: RISE, the mean of random masks, each weighed by the score of the image that it leaves visible."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.call import Call, make_call
from saliency.engine.checks import check_count, describe
from saliency.engine.maps import Resize, check_map_options, finish_map
from saliency.engine.state import evaluating, own_copy
from saliency.engine.targets import Target, get_backward_gradient, main_output, select_scores, split_targets
from saliency.methods.masks import check_masks, mask_chunks

Progress: TypeAlias = Callable[[int, int], Any] | None  # is told how many masks are done, of how many
_Select: TypeAlias = Callable[[Any, int, int], Tensor]  # output for m masked copies of image n, n, m -> scores (m, K)


class _Options(NamedTuple):
    """What :func:`rise` and :func:`rise_class` are called with, besides model, input and target."""

    seed: int
    num_masks: int
    num_cells: int
    filter_masks: Tensor | None
    batch_size: int
    p: float
    resize: Resize
    resize_mode: str
    smooth: float
    scores: str
    progress: Progress


def rise(
    model: Module,
    input: Tensor,
    target: Target = None,
    seed: int = 0,
    num_masks: int = 8000,
    num_cells: int = 7,
    filter_masks: Tensor | None = None,
    batch_size: int = 32,
    p: float = 0.5,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    *,
    smooth: float = 0,
    scores: str = "sigmoid",
    progress: Progress = None,
    additional_forward_args: Any = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""RISE for all classes from one run, (N, classes, H, W), whatever the target; :func:`rise_class` selects.

    .. math:: s_{ncu} = \frac{1}{M} \sum_m f_c(x_n \odot m) \, m_u

    with masks :math:`m` as :func:`random_masks` draws them, or ``filter_masks`` (M, 1, H, W) in [0, 1], 1 = kept;
    the same for all images. This is TorchRay's scale; the paper also divides by ``p``. The score :math:`f` is
    ``scores`` of the output: 'sigmoid' (TorchRay), 'softmax' over the classes, 'raw'; added up over the positions of
    a dense output. ``batch_size`` masked copies of one image make a chunk, whose masks alone are held; it changes the
    result by rounding alone. Any number of spatial axes works. ``progress(done, total)`` is called after every chunk.
    Raises ``ValueError`` for an argument that cannot be used, before the long run. Petsiuk et al., BMVC 2018.
    Other options: see :func:`saliency`.

    >>> masks = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]]])
    >>> rise(torch.nn.Flatten(), torch.tensor([[[[3.0, 4.0]]]]), filter_masks=masks, scores='raw')[0, 1]
    tensor([[2., 2.]])
    """
    options = _Options(
        *(seed, num_masks, num_cells, filter_masks, batch_size, p), *(resize, resize_mode, smooth, scores, progress)
    )
    call = _check(model, input, options, additional_forward_args, forward_kwargs)

    def every_class(output: Any, image: int, samples: int) -> Tensor:
        score = _score_tensor(output, samples, options.scores)
        return score.reshape(samples, 1 if score.ndim == 1 else score.shape[1], -1).sum(2)

    return _explain(call, lambda: every_class, options)


def rise_class(
    model: Module,
    input: Tensor,
    target: Target,
    seed: int = 0,
    num_masks: int = 8000,
    num_cells: int = 7,
    filter_masks: Tensor | None = None,
    batch_size: int = 32,
    p: float = 0.5,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    *,
    smooth: float = 0,
    scores: str = "sigmoid",
    progress: Progress = None,
    additional_forward_args: Any = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""RISE for the target: where the score is high if the position is visible.

    .. math:: s_{n1u} = \frac{1}{M} \sum_m f(x_n \odot m) \, m_u

    (N, 1, H, W), non-negative unless ``scores='raw'``; (N, K, H, W) for (N, K) targets, from one run. ``scores`` is
    applied to the output, then the target selects; of a function as target, it is applied to the scores that the
    function returns. The function is given the output for masked copies of one image, and has to treat every sample
    by itself. Formula, options and errors: see :func:`rise`. Petsiuk et al., BMVC 2018.

    >>> from saliency.scenes import make_scene, scene_network
    >>> rise_class(scene_network(), make_scene(0).image[None], 0, num_masks=8).shape
    torch.Size([1, 1, 128, 128])
    """
    options = _Options(
        *(seed, num_masks, num_cells, filter_masks, batch_size, p), *(resize, resize_mode, smooth, scores, progress)
    )
    call = _check(model, input, options, additional_forward_args, forward_kwargs)
    return _explain(call, lambda: _selected(call, target, options.scores), options)


def _check(model: Module, input: Any, options: _Options, additional_forward_args: Any, forward_kwargs: Any) -> Call:
    """The call of the model with the whole batch. Raises ``ValueError`` for what cannot be used."""
    if not isinstance(input, Tensor):
        raise ValueError(f"input={type(input).__name__} is no single tensor; one of shape (N, C, H, W) is accepted.")
    call = make_call(model, input, additional_forward_args, forward_kwargs)
    if not input.is_floating_point():
        raise ValueError(f"input={input.dtype} cannot be masked; a floating-point tensor is accepted.")
    if input.ndim < 3 or not input.numel():
        raise ValueError(f"input={tuple(input.shape)} has no positions to mask; a tensor (N, C, H, W) is accepted.")
    check_masks(options.num_masks, options.num_cells, options.p, options.seed)
    check_count("batch_size", options.batch_size)
    _check_filter_masks(options.filter_masks, tuple(input.shape[2:]))
    check_map_options(options.resize, options.resize_mode, options.smooth, None)
    if input.ndim != 4:  # raise now what would be raised after the run
        finish_map(input, input, options.resize, options.resize_mode, options.smooth)
    if options.scores not in tuple(_SCORES):
        raise ValueError(f"scores={options.scores!r} is unknown; one of {', '.join(_SCORES)} is accepted.")
    if not (options.progress is None or callable(options.progress)):
        raise ValueError(f"progress={options.progress!r} cannot be called; a function of two ints or None is accepted.")
    return call


def _check_filter_masks(masks: Any, size: tuple[int, ...]) -> None:
    if masks is None:
        return
    if not isinstance(masks, Tensor) or masks.is_complex() or masks.shape[1:] != (1, *size) or not len(masks):
        shape = ", ".join(map(str, size))
        raise ValueError(f"filter_masks={describe(masks)} does not fit; a tensor of shape (M, 1, {shape}) is accepted.")


def _softmax(output: Tensor) -> Tensor:
    if output.ndim < 2 or output.shape[1] < 2:
        raise ValueError("scores='softmax' makes 1 of an only score; 'sigmoid' or 'raw' is accepted.")
    return output.softmax(1)


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": _softmax, "raw": lambda x: x}


def _apply(scores: str, output: Tensor) -> Tensor:
    return _SCORES[scores](output.to(torch.promote_types(output.dtype, torch.float32)))


def _score_tensor(output: Any, samples: int, scores: str) -> Tensor:
    """The scores in a model's output, in float32 at least."""
    output = main_output(output)
    if not isinstance(output, Tensor) or output.shape[:1] != (samples,):
        raise ValueError(
            f"model returned {describe(output)} for {samples} samples; a tensor with a row for each, alone, "
            "first in a tuple, or as 'logits' or 'out' in a dict is accepted."
        )
    return _apply(scores, output)


def _selected(call: Call, target: Any, scores: str) -> _Select:
    """Which scores of an output are those of the target; checked on one forward pass of the images as they are."""
    if callable(target) and not isinstance(target, Tensor):
        return lambda output, image, samples: _apply(scores, select_scores(output, target, samples)[0])[:, None]
    images = own_copy(call.inputs[0])
    index = torch.arange(len(images), device=images.device)
    output, _ = select_scores(call.replacing({0: images}, index).run(), target, len(images))
    score = _score_tensor(output, len(images), scores)
    # One column per target; of the flat output only the entries count that any target of the image asks for.
    gradients = [get_backward_gradient(score, column) for column in split_targets(target)]
    columns = torch.stack([gradient.reshape(len(images), -1) for gradient in gradients], -1)
    entries = [column.any(1).nonzero().squeeze(1) for column in columns]
    weights = [column[index] for column, index in zip(columns, entries, strict=True)]

    def select(output: Any, image: int, samples: int) -> Tensor:
        score = _score_tensor(output, samples, scores)
        selected: Tensor = score.reshape(samples, -1)[:, entries[image]] @ weights[image]
        return selected

    return select


def _explain(call: Call, make_select: Callable[[], _Select], options: _Options) -> Tensor:
    """The finished maps, in the model's dtype."""
    input, dtype = call.inputs[0], call.dtype
    with evaluating(call.model, call.modules):
        select = make_select()
        maps = _accumulate(call, select, options, torch.promote_types(dtype, torch.float32))
        return finish_map(maps, input, options.resize, options.resize_mode, options.smooth).to(dtype)


def _accumulate(call: Call, select: _Select, options: _Options, precision: torch.dtype) -> Tensor:
    """The mean over the masks of score times mask, (N, K, ...)."""
    input = call.inputs[0].detach()
    images, total = len(input), options.num_masks if options.filter_masks is None else len(options.filter_masks)
    sums, done = torch.zeros(0, dtype=precision, device=input.device), 0
    for masks in _chunks(input, options):
        pixels = masks.flatten(1).to(precision)
        for image in range(images):
            index = torch.full((len(masks),), image, device=input.device)
            output = call.replacing({0: input[image] * masks}, index).run()
            with torch.autocast(input.device.type, enabled=False):
                score = select(output, image, len(masks)).to(precision)
                if not len(sums):
                    sums = sums.new_zeros(images, score.shape[1], pixels.shape[1])
                sums[image].addmm_(score.mT, pixels)
        done += len(masks)
        if options.progress is not None:
            options.progress(done, total)
    return sums.div_(total).view(images, -1, *input.shape[2:])


def _chunks(input: Tensor, options: _Options) -> Iterator[Tensor]:
    """The masks in the input's dtype and on its device, ``batch_size`` at a time."""
    if options.filter_masks is None:
        drawn = (options.num_masks, input.shape[2:], options.num_cells, options.p, options.seed)
        yield from mask_chunks(*drawn, input.device, input.dtype, options.batch_size)
    else:
        for masks in options.filter_masks.detach().split(options.batch_size):
            yield masks.to(input.device, input.dtype)
