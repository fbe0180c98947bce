"""Perturbing: shared by the methods that need the scores of perturbed inputs or perturbed activations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.call import Call, Input, make_call
from saliency.engine.checks import check_count, check_flag, check_progress, refuse_unknown
from saliency.engine.contexts import NullContext
from saliency.engine.driver import as_list
from saliency.engine.finishing import Finish, check_finish
from saliency.engine.gradients import CutOffError
from saliency.engine.graph import depends_on
from saliency.engine.layers import Layers
from saliency.engine.layouts import Layout, to_channels_first
from saliency.engine.maps import Attribution, Reduction, Resize, join_targets
from saliency.engine.record import recording
from saliency.engine.signatures import MapOptions, Maps
from saliency.engine.silence import note_map, note_one_position
from saliency.engine.site import Site, SiteError, make_site
from saliency.engine.state import evaluating, on_device
from saliency.engine.targets import Target, Targets
from saliency.engine.variants import Progress, Run, replacing_input, replacing_layer, scores
from saliency.engine.watching import Grid
from saliency.methods.grids import grid_index

PER_EVAL = 32  # variants per forward pass, by default


T = TypeVar("T")


class ExplainOptions(MapOptions, total=False):
    """Options of a method that forwards them to :func:`explain`."""

    progress: Progress


class Perturbed(NamedTuple):
    """What is perturbed, ``x`` (N, ...), an input or an activation; how to run on variants of it; and the targets."""

    x: Tensor
    run: Run
    call: Call
    site: Site
    number: int  # the index of the input
    targets: Targets
    layout: Layout
    size: int
    progress: Progress

    @property
    def _reading(self) -> tuple[Sequence[int], Layout, Module, Sequence[Grid]]:
        """What determines the grid of the activation; the input is (N, C, h, w), whatever the layout of layers."""
        layout = self.layout if self.site.name or self.x.ndim < 3 else "channels_first"
        return self.call.image_of(len(self.x)).shape[2:], layout, self.site.module, self.site.seen or ()

    @property
    def grid(self) -> Tensor:
        """The activation as (N, C, h, w)."""
        return to_channels_first(self.x, *self._reading)

    @property
    def entries(self) -> Tensor:
        """The flat index of the entry of a sample's activation at each point of that grid, on its device."""
        return at(grid_index(self.x[:1], *self._reading), self.x)

    def scores(self, count: int, make: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Scores (N, count, K) of the variants 0 to ``count`` - 1 of every sample.

        ``make(samples, numbers)`` returns the tensors of some of them; both arguments are LongTensors (B,) on
        the CPU.
        """
        rows = torch.arange(len(self.x), device="cpu").repeat_interleave(count)

        def variants(index: Tensor) -> Tensor:
            return make(rows[index], index % count)

        found = scores(self.run, self.targets, rows, variants, self.size, self.progress)
        return found.view(len(self.x), count, -1)

    def known(self) -> Tensor:
        """The scores (N, 1, K) of the unperturbed samples."""
        samples = torch.arange(len(self.x), device="cpu")
        return scores(self.run, self.targets, samples, lambda index: self.x[at(index, self.x)], self.size)[:, None]

    def drops(self, count: int, make: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """How far the scores of such variants fall, (N, count, K)."""
        return self.known() - self.scores(count, make)

    def own(self, argument: str, given: T | Sequence[T]) -> T:
        """The value for the perturbed input; one that is not a tuple or list is for all inputs."""
        if not isinstance(given, (tuple, list)):
            return cast(T, given)
        expected = 1 if self.site.name else len(self.call.inputs)
        if len(given) != expected:
            raise ValueError(f"{argument}={len(given)} values do not fit; expected {expected}, one per input.")
        own: T = given[self.number]
        return own


def at(index: Tensor, x: Tensor) -> Tensor:
    """An index on the device of ``x``, copied without waiting."""
    return on_device(index, x.device)


def explain(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers,
    attribute: Callable[[Perturbed], Tensor],
    reduction: Reduction,
    perturbations_per_eval: int,
    as_grids: bool = False,
    masks_image: bool = False,
    /,
    *,
    progress: Progress = None,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    layout: Layout = None,
    attribute_to_layer_input: bool = False,
    additional_forward_args: object = None,
    forward_kwargs: Mapping[str, object] | None = None,
    **unknown: NoReturn,
) -> Maps:
    """The finished maps of the attributions (N, K, ...) of ``attribute``, shaped like the perturbed tensor or its grid.

    Options and results as for :func:`saliency`. The model runs ``perturbations_per_eval`` variants at a time, and
    ``progress(done, total)`` is called after each chunk. With ``masks_image``, variants replace the image, whatever
    the layer.
    """
    refuse_unknown(unknown)
    check_flag("attribute_to_layer_input", attribute_to_layer_input)
    check_progress(progress)
    check_count("perturbations_per_eval", perturbations_per_eval)
    call, layers = make_call(model, input, additional_forward_args, forward_kwargs), as_list(saliency_layer)
    check_finish(call, layers, resize, resize_mode, smooth, layout)
    targets = Targets(target, call.samples)
    sites = [make_site(call, layer, attribute_to_layer_input, target=target) for layer in layers]
    shape = "channels_first" if as_grids else "layer" if reduction is None else layout
    finish = Finish(call, shape, Attribution(reduction, of="activation"), resize, resize_mode, smooth)
    results = []
    with evaluating(call.model, call.modules):
        for asked in sites:
            site, activation = _influential(call, asked, targets)
            maps = []
            for number, x, run in _perturbed(call, site, activation, masks_image):
                p = Perturbed(x, run, call, site, number, targets, layout, perturbations_per_eval, progress)
                maps.append(join_targets(finish.maps(site, attribute(p).unbind(1)), shape == "layer"))
                if reduction is not None and layout != "layer":
                    note_one_position(call, site, targets, x)
            note_map(call, site, targets, maps)
            results.append(tuple(maps) if not site.name and isinstance(input, (tuple, list)) else maps[0])
    call.notices.report()
    return results if isinstance(saliency_layer, (list, tuple)) else results[0]


def _influential(call: Call, site: Site, targets: Targets) -> tuple[Site, Tensor | None]:
    """A site and its activation (N, ...); a site found in an earlier call is searched anew if the score ignores it."""
    try:
        return site, _activation(call, site, targets) if site.name else None
    except SiteError:
        if not site.found:
            raise
    site = make_site(call, None, site.side == "input", targets.asked, anew=True)
    return site, _activation(call, site, targets)


def _activation(call: Call, site: Site, targets: Targets) -> Tensor:
    """The layer's activation (N, ...). Raises ``ValueError`` where a differentiable score does not depend on it."""
    with torch.set_grad_enabled(True), recording(call, [site], NullContext) as recorded:
        score = targets.scores(recorded.output).sum()
        x = recorded.tensors[0][0]
        differentiable = score.requires_grad or any(parameter.requires_grad for parameter in call.parameters)
        if differentiable and not depends_on(score, x):  # no perturbation would change the score
            raise CutOffError(site)
        return x.detach()


def _perturbed(
    call: Call, site: Site, activation: Tensor | None, masks_image: bool
) -> Iterator[tuple[int, Tensor, Run]]:
    """The tensors of a site that can be perturbed, each with how to run the model on variants of it."""
    _, run_image = replacing_input(call, call.image_at)
    if activation is None:
        for number in (number for number, x in enumerate(call.inputs) if x.is_floating_point()):
            x, run = replacing_input(call, number)
            yield number, x, run_image if masks_image else run
    elif masks_image:  # the network behind the layer need not run
        yield 0, activation, run_image
    else:
        yield 0, *replacing_layer(call, site)
