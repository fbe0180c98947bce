"""Masking: RISE, the mean of random masks, each weighted by the score of the masked image."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.call import Call, make_call
from saliency.engine.checks import check_count, check_progress, describe, refuse_unknown, shown
from saliency.engine.interrupts import interruptible
from saliency.engine.maps import Resize, check_map_options, finish_map
from saliency.engine.notices import Notices
from saliency.engine.outputs import Output, main_output
from saliency.engine.silence import note_map, note_score
from saliency.engine.site import make_site
from saliency.engine.state import evaluating, full_precision
from saliency.engine.targets import Target, Targets
from saliency.engine.variants import Progress, Run, replacing_image, scores
from saliency.methods.masks import DrawnMasks, check_masks

_WEIGHED_AT_ONCE = 2**23  # mask pixels that are weighted together


class _Options(NamedTuple):
    """The arguments of :func:`rise` and :func:`rise_class` besides model, input and target."""

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
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
    **unknown: NoReturn,
) -> Tensor:
    r"""RISE for all classes from one run, (N, classes, H, W); the target is ignored: :func:`rise_class` selects.

    .. math:: s_{ncu} = \frac{1}{M} \sum_m f_c(x_n \odot m) \, m_u

    with masks :math:`m` as drawn by :func:`random_masks`, or ``filter_masks`` (M, 1, H, W) in [0, 1], 1 = kept; the
    same for all images. This is TorchRay's scale; the paper also divides by ``p``. The score :math:`f` is
    ``scores`` of the output: 'sigmoid' (TorchRay), 'softmax' over the classes, or 'raw'; dense outputs are summed
    over their positions. A chunk is ``batch_size`` masked copies of one image, whose masks alone are in memory; its
    size changes the result by rounding only. Any number of spatial axes works. ``progress(done, total)`` is called
    after every chunk. Raises ``ValueError`` for invalid arguments before the run. Petsiuk et al., BMVC 2018. Other
    options: see :func:`saliency`.

    >>> masks = torch.tensor([[[[1.0, 0.0]]], [[[1.0, 1.0]]]])
    >>> rise(torch.nn.Flatten(), torch.tensor([[[[3.0, 4.0]]]]), filter_masks=masks, scores='raw')[0, 1]
    tensor([[2., 2.]])
    """
    refuse_unknown(unknown)
    options = _Options(
        *(seed, num_masks, num_cells, filter_masks, batch_size, p), *(resize, resize_mode, smooth, scores, progress)
    )
    call = _check(model, input, options, additional_forward_args, forward_kwargs)
    return _explain(call, Targets(_every_class, call.samples), options, of_scores=True)


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
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
    **unknown: NoReturn,
) -> Tensor:
    r"""RISE for the target: the mean of random masks, weighted by the score of the masked image.

    .. math:: s_{n1u} = \frac{1}{M} \sum_m f(x_n \odot m) \, m_u

    (N, 1, H, W), non-negative unless ``scores='raw'``; (N, K, H, W) for (N, K) targets, from one run. ``scores`` is
    applied to the output, from which the target then selects; for a callable target, it is applied to what that
    returns. The callable is given the output for masked copies of one image, and must treat each row independently.
    Formula, options and errors: see :func:`rise`. Petsiuk et al., BMVC 2018.

    >>> from saliency.scenes import make_scene, scene_network
    >>> rise_class(scene_network(), make_scene(0).image[None], 0, num_masks=8).shape
    torch.Size([1, 1, 128, 128])
    """
    refuse_unknown(unknown)
    options = _Options(
        *(seed, num_masks, num_cells, filter_masks, batch_size, p), *(resize, resize_mode, smooth, scores, progress)
    )
    call = _check(model, input, options, additional_forward_args, forward_kwargs)
    targets = Targets(target, call.samples)
    maps = _explain(call, targets, options, of_scores=not targets.of_functions)
    return call.frames_of(maps)


def _check(
    model: Module, input: object, options: _Options, additional_forward_args: object, forward_kwargs: object
) -> Call:
    """The call of the model on the whole batch. Raises ``ValueError`` for invalid arguments."""
    if not isinstance(input, Tensor):
        raise ValueError(f"input={type(input).__name__} is not a single tensor; expected one of shape (N, C, H, W).")
    call = make_call(model, input, additional_forward_args, forward_kwargs)
    if not input.is_floating_point():
        raise ValueError(f"input={input.dtype} cannot be masked; expected a floating-point tensor.")
    if input.ndim < 3 or not input.numel():
        raise ValueError(f"input={tuple(input.shape)} has no positions to mask; expected a tensor (N, C, H, W).")
    check_masks(options.num_masks, options.num_cells, options.p, options.seed)
    check_count("batch_size", options.batch_size)
    _check_filter_masks(options.filter_masks, tuple(call.volume.shape[2:]))
    check_map_options(options.resize, options.resize_mode, options.smooth, None, input)
    # Raise now rather than after the run.
    finish_map(call.volume[:1, :1], call.volume, options.resize, options.resize_mode, options.smooth)
    if not isinstance(options.scores, str) or options.scores not in _SCORES:
        raise ValueError(f"scores={shown(options.scores)} is not a valid score; expected one of {', '.join(_SCORES)}.")
    check_progress(options.progress)
    return call


def _check_filter_masks(masks: object, size: tuple[int, ...]) -> None:
    if masks is None:
        return
    if not isinstance(masks, Tensor) or masks.is_complex() or masks.shape[1:] != (1, *size) or not len(masks):
        shape = ", ".join(map(str, size))
        raise ValueError(f"filter_masks={describe(masks)} does not fit; expected a tensor of shape (M, 1, {shape}).")


def _softmax(output: Tensor) -> Tensor:
    if output.ndim < 2 or output.shape[1] < 2:
        raise ValueError("scores='softmax' is 1 for any single score; expected 'sigmoid' or 'raw'.")
    return output.softmax(1)


_SCORES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": _softmax, "raw": lambda x: x}


def _activation(scores: str, notices: Notices) -> Callable[[Tensor], Tensor]:
    """The function from outputs to scores, in float32 or wider; non-finite values are noted in the first output."""
    unseen = [notices]

    def activate(output: Tensor) -> Tensor:
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        while unseen:
            note_score(unseen.pop(), output)
        return _SCORES[scores](output)

    return activate


def _every_class(score: object) -> Tensor:
    """The scores (B, classes) of an output, summed over its positions."""
    if not isinstance(score, Tensor):
        raise _without_scores(score)
    return score.reshape(len(score), 1 if score.ndim == 1 else score.shape[1], -1).sum(2)


def _without_scores(output: object) -> ValueError:
    return ValueError(
        f"model returned {describe(output)} for a batch of images; expected a tensor with one row per image, alone, "
        "first in a tuple, or as 'logits' or 'out' in a dict, or rise_class with a function of the output as target."
    )


def _activated(run: Run, activation: Callable[[Tensor], Tensor]) -> Run:
    """A run that returns the scores of the outputs."""

    def activate(tensors: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Output]]:
        for at, output in run(tensors, rows):
            score = main_output(output, len(at))
            if isinstance(score, Tensor):
                if score.shape[:1] != at.shape:
                    raise _without_scores(score)
                score = activation(score)
            yield at, score

    return activate


def _explain(call: Call, targets: Targets, options: _Options, of_scores: bool) -> Tensor:
    """The finished maps, in the model's dtype.

    With ``of_scores``, targets select from the scores; otherwise they select from the output, and scores are
    computed of the selection.
    """
    x, run = replacing_image(call)
    drawn = (options.num_masks, x.shape[2:], options.num_cells, options.p, options.seed)
    masks = DrawnMasks(*drawn, x.device, x.dtype) if options.filter_masks is None else options.filter_masks.detach()
    activation = _activation(options.scores, call.notices)
    with evaluating(call.model, call.modules):
        weights = _weigh(run, targets, x, masks, options, activation, of_scores)
        weights = weights.to(torch.promote_types(call.dtype, torch.float32))
        maps = _mean(weights, masks).view(len(x), -1, *x.shape[2:])
        maps = finish_map(maps, x, options.resize, options.resize_mode, options.smooth).to(call.dtype)
    note_map(call, make_site(call, ""), targets, [maps])
    call.notices.report()
    return maps


def _weigh(
    run: Run,
    targets: Targets,
    x: Tensor,
    masks: DrawnMasks | Tensor,
    options: _Options,
    activation: Callable[[Tensor], Tensor],
    of_scores: bool,
) -> Tensor:
    """The scores (M, N * K) of N images under M masks; a chunk holds masked copies of one image."""
    run = _activated(run, activation) if of_scores else run
    chunks = []
    for start in range(0, len(masks), options.batch_size):
        part = masks[start : start + options.batch_size].to(x)
        row = torch.zeros(len(part), dtype=torch.long, device="cpu")
        of_images = [scores(run, targets, row + n, partial(_masked, image, part)) for n, image in enumerate(x)]
        chunks.append(torch.cat(of_images if of_scores else list(map(activation, of_images)), 1))
        if options.progress is not None:
            with interruptible():
                options.progress(start + len(part), len(masks))
    return torch.cat(chunks)


def _masked(image: Tensor, masks: Tensor, index: Tensor) -> Tensor:
    return image * masks


def _mean(weights: Tensor, masks: DrawnMasks | Tensor) -> Tensor:
    """The mean (R, pixels) over M masks with R weights (M, R) each; the masks are drawn again."""
    pixels = masks[:1].numel()
    total = weights.new_zeros(weights.shape[1], pixels)
    size = max(1, _WEIGHED_AT_ONCE // pixels)
    with full_precision(weights.device):
        for start in range(0, len(weights), size):
            part = masks[start : start + size].flatten(1).to(weights)
            total.addmm_(weights[start : start + size].mT, part)
    return total.div_(len(weights))
