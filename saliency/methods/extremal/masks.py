"""Extremal perturbations: the smooth mask of a given area that preserves, or destroys, most of a score."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn, TypedDict

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Call, Input, make_call
from saliency.engine.checks import check_flag, check_progress, describe, is_number, refuse_unknown, shown
from saliency.engine.contexts import NullContext
from saliency.engine.gradients import CutOffError
from saliency.engine.graph import depends_on
from saliency.engine.layers import Layer
from saliency.engine.layouts import Layout
from saliency.engine.maps import Resize, check_map_options, finish_map, imsmooth
from saliency.engine.outputs import main_output
from saliency.engine.probe import attach_debug_probes
from saliency.engine.record import recording
from saliency.engine.sending import retry_with_copies
from saliency.engine.signatures import Maps
from saliency.engine.silence import note_map, note_score
from saliency.engine.site import Site, make_site
from saliency.engine.state import evaluating, on_device
from saliency.engine.targets import Target, Targets
from saliency.engine.variants import Progress, Run, in_order, replacing_image
from saliency.methods.extremal.perturbation import BLUR_PERTURBATION
from saliency.methods.extremal.rewards import RewardFunction, simple_reward
from saliency.methods.extremal.search import PRESERVE_VARIANT, Reward, Search, find_masks
from saliency.methods.grids import replacing_grid


class SearchOptions(TypedDict, total=False):
    """Options that :func:`extremal_perturbation_map` forwards."""

    perturbation: str
    num_levels: int
    step: int
    sigma: float
    jitter: bool
    variant: str
    print_iter: Callable[[int, Tensor], object] | None
    reward_func: RewardFunction
    seed: int | None
    tolerance: float
    additional_forward_args: object
    forward_kwargs: Mapping[str, object] | None
    layout: Layout


def extremal_perturbation(
    model: Module,
    input: Input,
    target: Target,
    areas: float | Sequence[float] = (0.1,),
    perturbation: str = BLUR_PERTURBATION,
    max_iter: int = 800,
    num_levels: int = 8,
    step: int = 7,
    sigma: float = 21,
    jitter: bool = True,
    variant: str = PRESERVE_VARIANT,
    print_iter: Callable[[int, Tensor], object] | None = None,
    debug: bool = False,
    reward_func: RewardFunction = simple_reward,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    *,
    saliency_layer: Layer = "",
    seed: int | None = None,
    tolerance: float = 0,
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
    layout: Layout = None,
    **unknown: NoReturn,
) -> Any:
    r"""Masks (R, 1, h, w) in [0, 1] and their energies (R, 2, ``max_iter``): reward and area term per iteration.

    .. math:: m_a = \arg\max_m \Phi(m \otimes x) - \lambda \, \| \operatorname{vecsort}(m) - r_a \|^2

    The R masks, one per image, target and area :math:`a`, in that order, are found together. :math:`r_a` is 0, then
    1 on a fraction a of the mask and its margin of ``sigma``; ``step`` and sigma shape the mask
    (:class:`MaskGenerator`), and ``perturbation`` applies it. :math:`\Phi` is ``reward_func``, averaged over the
    positions of a class. ``jitter`` flips every second evaluation, or random ones if there is a ``seed``.
    ``smooth`` is a fraction of the shorter side. With ``saliency_layer``, an activation is perturbed, and step and
    sigma count its positions. ``tolerance``: masks whose parameters moved less in 10 iterations are final and cost
    nothing more. ``print_iter(iteration, energies)`` is given the (R, 2) energies; ``debug`` adds probes of the
    last evaluation (at a layer, of the last image). Fong et al., ICCV 2019. Errors: see :func:`saliency`.
    """
    refuse_unknown(unknown)
    check_flag("debug", debug)
    search = Search(perturbation, max_iter, num_levels, step, sigma, jitter, variant, seed, tolerance)
    fractions = _check(search, areas, reward_func, print_iter, saliency_layer)
    call = make_call(model, input, additional_forward_args, forward_kwargs)
    check_map_options(resize, resize_mode, smooth, layout, call.image)
    targets = Targets(target, call.samples)
    with evaluating(call.model, call.modules), ExitStack() as stack:
        site = make_site(call, saliency_layer, target=target)
        x, run, count = _perturbed(call, site, targets, layout, sigma, copies=debug)
        probes = attach_debug_probes(call.model, debug)
        watching = [stack.enter_context(probe) for probe in (probes or {}).values()]
        masks, energies = retry_with_copies(
            lambda _: find_masks(
                x,
                [image for image in range(len(x)) for _ in range(count * len(fractions))],
                fractions * (len(x) * count),
                _reward(run, targets, count, len(fractions), reward_func, variant),
                search,
                print_iter,
                lambda: [tensor for probe in watching for tensor in probe.data],
            )
        )
    note_score(call.notices, energies)
    note_map(call, site, targets, [masks])
    call.notices.report()
    masks = finish_map(masks.to(call.dtype), call.volume, resize, resize_mode, 0)
    masks = imsmooth(masks, smooth * min(masks.shape[2:])) if smooth > 0 else masks
    return (masks, energies, probes) if debug else (masks, energies)


def _check(search: Search, areas: object, reward_func: object, print_iter: object, layer: object) -> list[float]:
    """The areas, once everything that does not depend on the model has been checked."""
    search.check()
    fractions = _as_list(areas)
    if not callable(reward_func):
        raise ValueError(
            f"reward_func={shown(reward_func)} is not callable; expected a function such as simple_reward."
        )
    if not (print_iter is None or callable(print_iter)):
        raise ValueError(
            f"print_iter={shown(print_iter)} is not callable; expected a callback print_iter(iteration, energies)."
        )
    if isinstance(layer, (list, tuple)):
        raise ValueError(f"saliency_layer={shown(layer)} is not one layer; expected a name, a module, '' or None.")
    return fractions


def _as_list(areas: object) -> list[float]:
    """The areas, one or several, as a list."""
    listed = areas.tolist() if hasattr(areas, "tolist") else areas
    asked = list(listed) if isinstance(listed, (list, tuple)) else [listed]
    fractions = [float(share) for share in asked if is_number(share) and 0 < share <= 1]
    if not fractions or len(fractions) < len(asked):
        raise ValueError(f"areas={shown(areas)} are not fractions of the mask; expected one or more numbers in (0, 1].")
    return fractions


def _perturbed(
    call: Call, site: Site, targets: Targets, layout: Layout, sigma: float, copies: bool
) -> tuple[Tensor, Run, int]:
    """What is perturbed, (N, C, h, w), how to run the model on other values, and the number of targets per image."""
    at = call.image_at
    image = call.inputs[at]
    if not site.name and (not 3 <= image.ndim <= 5 or not image.is_floating_point()):
        raise ValueError(f"input={tuple(image.shape)} has no grid; expected a floating-point (N, C, H, W).")
    index = 0 if site.name else sum(tensor.is_floating_point() for tensor in call.inputs[:at])
    # A model may set the gradient mode itself; if that cuts the layer off, record from the input on.
    for record_all in (False, True):
        run = recording(call, [site], NullContext)
        with torch.set_grad_enabled(record_all), run as recorded:
            scores = targets.scores(recorded.output)
            reached = depends_on(scores.sum(), recorded.tensors[0][index])
        if scores.device.type == "cpu" and not scores.isfinite().all():
            raise ValueError(
                f"model={type(call.model).__name__} returned a score that is NaN or infinite; expected finite scores."
            )
        if reached and not site.name:
            return *replacing_image(call), scores.shape[1]
        if reached:
            x, run_grids = replacing_grid(call, site, image.shape[2:], layout, record_all, copies)
            _check_width(sigma, x)
            return x, run_grids, scores.shape[1]
    raise CutOffError(site)


def _check_width(sigma: float, x: Tensor) -> None:
    if sigma > min(x.shape[2:]):
        raise ValueError(
            f"sigma={shown(sigma)} is wider than the layer's grid {tuple(x.shape[2:])}; expected step and sigma in "
            "positions of the layer, such as step=1, sigma=2."
        )


def _reward(run: Run, targets: Targets, count: int, areas: int, reward_func: RewardFunction, variant: str) -> Reward:
    """The reward of perturbed tensors: from their activation for a class, or from the single score of any other target.

    A row of the search is one area of one of an image's ``count`` targets; for ``'dual'``, all rows occur twice.
    """
    classes = targets.classes

    def reward(tensors: Tensor, rows: Tensor) -> Tensor:
        column = rows.repeat(len(tensors) // len(rows)) // areas
        image, k = column // count, column % count
        parts = []
        for at, output in run(tensors, image):
            if classes is None:
                every = targets.rows(image[at]).scores(output)
                parts.append((at, every.gather(1, on_device(k[at, None], every.device))))
            else:
                parts.append((at, main_output(output, len(at))))
        chosen = torch.zeros(1, dtype=torch.long, device="cpu") if classes is None else classes[image, k]
        activation = in_order(parts)
        same = bool((chosen == chosen[0]).all())
        target = int(chosen[0]) if same else on_device(chosen, activation.device)
        result = reward_func(activation, target, variant=variant)
        if not isinstance(result, Tensor) or result.shape[:1] != rows.shape:
            raise ValueError(
                f"reward_func={shown(reward_func)} returned {describe(result)}; expected {len(rows)} rows of rewards."
            )
        return result.reshape(len(rows), -1).mean(1)

    return reward


def extremal_perturbation_map(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layer = "",
    areas: float | Sequence[float] = (0.025, 0.05, 0.1, 0.2),
    *,
    max_iter: int = 800,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    debug: bool = False,
    progress: Progress = None,
    **options: Unpack[SearchOptions],
) -> Maps:
    r"""Extremal perturbations as a map (N, 1, h, w): the sum of the masks over the areas, between 0 and their number.

    .. math:: s = \sum_a m_a

    The smaller the areas that contain a position, the higher its value. (N, K, h, w) for K targets; ``resize`` and
    ``smooth`` as for every map. Unless ``print_iter`` is given, ``progress(done, max_iter)`` is called after each
    iteration. Fong et al., ICCV 2019. Options and errors: see :func:`extremal_perturbation`.

    >>> from saliency.scenes import make_scene, scene_network
    >>> image = make_scene(0).image[None]
    >>> extremal_perturbation_map(scene_network(), image, 0, areas=(0.1, 0.2), max_iter=2).shape
    torch.Size([1, 1, 128, 128])
    """
    call = make_call(model, input)
    check_map_options(resize, resize_mode, smooth, options.get("layout"), call.image)
    if progress is not None and options.get("print_iter") is None:
        check_progress(progress)
        options["print_iter"] = lambda iteration, energies: progress(iteration + 1, max_iter)
    masks, _, *probes = extremal_perturbation(
        model, input, target, areas, max_iter=max_iter, saliency_layer=saliency_layer, debug=debug, **options
    )
    saliency = masks.unflatten(0, (call.samples, -1, len(_as_list(areas)))).sum(2).squeeze(2)
    saliency = finish_map(saliency, call.volume, resize, resize_mode, smooth)
    saliency = call.frames_of(saliency)
    return (saliency, *probes) if debug else saliency
