"""Gradients at sites: of one forward pass, or of all steps of a path."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from saliency.engine.call import Call
from saliency.engine.checks import describe, shown
from saliency.engine.contexts import NullContext, RuleContext
from saliency.engine.maps import gradient_of
from saliency.engine.record import Pass, recording
from saliency.engine.sending import Sought
from saliency.engine.settings import Settings
from saliency.engine.silence import note_shares
from saliency.engine.site import Site, SiteError
from saliency.engine.targets import Targets, get_backward_gradient

Activations: TypeAlias = list[list[Tensor]]  # per site, per tensor there: an activation with its .grad


class CutOffError(SiteError):
    """No gradient reaches a site."""

    def __init__(self, site: Site) -> None:
        super().__init__(
            site,
            "is reached by no gradient: the score does not depend on it (on another output of a layer that returns "
            "several, or not on the input at all) or is computed without gradients (no_grad, inference_mode or "
            "detach() inside the model, quantised operations, reentrant checkpointing); expected a layer on the path "
            "to the score.",
        )


class Deltas(list[list[Tensor]]):
    """By how much the attributions at each site differ from the score: one column (N, 1) per target."""

    def add(self, samples: int, recorded: Pass, activations: Activations) -> None:
        """Add the result of a pass for its next target."""
        if recorded.sent is None or recorded.scores is None:
            return
        sent, scores = recorded.sent.detach(), recorded.scores.detach()
        score = torch.where(sent == 0, 0, scores * sent).reshape(samples, -1).sum(1)
        of_sites = [
            score - torch.stack([(x * gradient_of(x)).reshape(samples, -1).sum(1) for x in tensors]).sum(0)
            for tensors in activations
        ]
        self[:] = self or [[] for _ in of_sites]
        for columns, missed in zip(self, of_sites, strict=True):
            columns.append(missed[:, None])


def send_gradients(
    recorded: Pass, targets: Targets, tensors: Sequence[Sought], watched: Sequence[Tensor], settings: Settings
) -> Iterator[list[Tensor | None]]:
    """Yield the gradients at the tensors for every target; each ``watched`` tensor gets its own as ``.grad``."""
    get = settings.get_backward_gradient
    if get is None:
        for _ in range(len(targets)):
            yield [None] * len(tensors)
        return
    columns = targets.select(recorded.output)
    keys = None if settings.shared is None else targets.key
    for k, (scores, wanted) in enumerate(columns):
        gradient = targets.gradient(scores, k) if get is get_backward_gradient else get(scores, wanted)
        if not isinstance(gradient, Tensor) or gradient.shape != scores.shape:
            raise ValueError(
                f"get_backward_gradient={shown(get)} returned {describe(gradient)}; expected "
                f"a tensor of the output's shape {tuple(scores.shape)}."
            )
        recorded.scores, recorded.sent = scores, gradient
        found: list[Tensor | None] = [None] * (len(tensors) + len(watched))
        if scores.requires_grad:
            key = None if keys is None else (get, keys[k])
            found = recorded.gradients(scores, gradient, [*tensors, *watched], k + 1 < len(columns), key)
        for x, dx in zip(watched, found[len(tensors) :], strict=True):
            x.grad = dx
        yield found[: len(tensors)]


def at_once(
    call: Call, targets: Targets, sites: Sequence[Site], settings: Settings, deltas: "Deltas | None" = None
) -> Iterator[Activations]:
    """Yield, for every target, the activations of one forward pass with their gradients, computed on demand.

    Without ``get_backward_gradient`` there is no backward pass, and the activations have no gradient. By how much the
    attributions differ from the score is added to ``deltas``.
    """
    kept = None if torch.is_grad_enabled() else settings.shared
    record = recording if kept is None else kept.recording
    with record(call, sites, settings.context_builder, settings.get_backward_gradient is not None) as recorded:
        tensors = [x for at_site in recorded.tensors for x in at_site]
        watched = [x for probe in settings.probes for x in probe.data]
        every = (
            # Copies: reductions may overwrite them, and the next target needs the same values.
            _noted(
                *(call, sites, recorded, deltas),
                by_site(sites, recorded.tensors, map(recorded.factor, tensors), gradients, settings),
            )
            for gradients in send_gradients(recorded, targets, tensors, watched, settings)
        )
        if isinstance(recorded.context, NullContext) or (
            isinstance(recorded.context, RuleContext) and recorded.context.is_table
        ):
            yield from every
            return
        collected = list(every)  # reductions are not part of the model: they run outside the context
    yield from collected


def _noted(
    call: Call, sites: Sequence[Site], recorded: Pass, deltas: "Deltas | None", activations: Activations
) -> Activations:
    if deltas is not None:
        with torch._C.DisableTorchFunction():
            deltas.add(call.samples, recorded, activations)
    conserved = getattr(recorded.context, "conserves", None)
    if conserved is not None and recorded.sent is not None:
        with torch._C.DisableTorchFunction():  # the context is open
            for site, tensors in zip(sites, activations, strict=True):
                note_shares(call.notices, conserved, site, tensors, recorded.sent)
    return activations


def by_site(
    sites: Sequence[Site],
    structure: Sequence[Sequence[Tensor]],
    tensors: Iterable[Tensor],
    gradients: Iterable[Tensor | None],
    settings: Settings,
) -> Activations:
    """Regroup tensors by site, each with its gradient."""
    pairs = zip(tensors, gradients, strict=True)
    return [
        [_with_gradient(*next(pairs), site, settings) for _ in at_site]
        for site, at_site in zip(sites, structure, strict=True)
    ]


def _with_gradient(x: Tensor, gradient: Tensor | None, site: Site, settings: Settings) -> Tensor:
    if gradient is None and settings.materialize_grads:
        gradient = torch.zeros_like(x)
    if gradient is None and settings.get_backward_gradient is not None:
        raise CutOffError(site)
    if gradient is not None and gradient.ndim > x.ndim:  # a fold's powers of the gradient
        gradient, *powers = gradient.unbind(-1)
        for lower, power in zip([gradient, *powers], powers, strict=False):
            lower.grad = power
    x.grad = gradient
    return x
