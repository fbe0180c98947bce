"""Silence: notices for a method that did nothing, and for a map that shows nothing."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from saliency.engine.call import Call
from saliency.engine.contexts import Conserved, RuleContext
from saliency.engine.notices import Notices
from saliency.engine.operations import Function
from saliency.engine.search import found_layer
from saliency.engine.site import Site
from saliency.engine.state import evaluating, on_device
from saliency.engine.targets import Targets


def note_idle(notices: Notices, context: RuleContext, sites: Sequence[Site]) -> None:
    """Note that no operation ran that the context has a rule for."""
    layers = ", ".join(dict.fromkeys(repr(site.name) for site in sites))
    notices.add(
        "idle",
        f"context_builder={type(context).__name__} changed nothing: none of its operations ran after "
        f"saliency_layer={layers}, so the result is the plain gradient; expected one of "
        f"{', '.join(_names(context.rules))}. Other ways to write these, such as x * sigmoid(x), masks or "
        "an autograd.Function, have no rule: use the torch function, or a RuleContext with a rule of your own.",
    )


def _names(functions: Iterable[Function]) -> list[str]:
    """The names by which a user knows the functions, each once."""
    return sorted({function.__name__.partition(".")[0].strip("_") for function in functions})


def note_shares(notices: Notices, conserved: Conserved, site: Site, tensors: Sequence[Tensor], sent: Tensor) -> None:
    """Note, for every sample, the share of ``sent`` that arrived at a site of a context that conserves it."""
    found = [x.grad for x in tensors if x.grad is not None]
    if site.call == "all" or not found or found[0].is_meta:
        return
    rows = len(sent) if sent.ndim and all(len(dx) == len(sent) for dx in found) else 1
    # In float32, as sums overflow in float16.
    seed, *arrived = (on_device(x, found[0].device, torch.float32).reshape(rows, -1) for x in (sent, *found))
    total = sum((dx.sum(1) for dx in arrived[1:]), arrived[0].sum(1))
    values = torch.cat([total, seed.sum(1), seed.amin(1)])
    notices.look(values, partial(_judge_shares, conserved, site.said))


def _judge_shares(conserved: Conserved, named: str, values: list[float]) -> tuple[str, str] | None:
    rows = len(values) // 3
    triples = zip(values[:rows], values[rows : 2 * rows], values[2 * rows :], strict=True)
    # For a seed of mixed signs, no particular share has to arrive.
    shares = [arrived / sent for arrived, sent, least in triples if least >= 0 and sent > 0]
    if not shares:
        return None
    if not any(shares):
        return "zero", f"{named}: {conserved.nothing}"
    if not all(min(conserved.least, 0) <= share <= conserved.most for share in shares):
        return "shares", f"{named}: {conserved.outside}"
    return ("shares", f"{named}: {conserved.lost}") if min(shares) < conserved.least else None


def note_one_position(call: Call, site: Site, targets: Targets, x: Tensor) -> None:
    """Note that a layer of an image has a single position."""
    if site.name and x.ndim > 1 and x.shape[2:].numel() == 1 < call.image.shape[2:].numel():
        text = f"{site.said} has a single position, as a layer after pooling does: its map does not localise"
        known = torch.zeros(1, device="cpu")  # the search for another layer waits until this pass is over
        call.notices.look(known, lambda values: ("zero", text), lambda values: _other_layer(call, site, targets))


def note_map(call: Call, site: Site, targets: Targets, maps: Sequence[Tensor], elsewhere: bool = True) -> None:
    """Note that the maps of a layer are zero everywhere or not finite, and, with ``elsewhere``, which layer to use
    instead.
    """
    filled = [x for x in maps if x.is_floating_point() and x.numel()]
    ranges = [on_device(side, filled[0].device) for x in filled for side in torch.aminmax(x)]
    if ranges:
        advise = partial(_advise, call, site if elsewhere else site._replace(name=""), targets)
        call.notices.look(torch.stack(ranges), partial(_judge_map, site.said), advise)


def _judge_map(named: str, values: list[float]) -> tuple[str, str] | None:
    if not all(map(math.isfinite, values)):
        return "finite", f"{named} has a map with NaN or infinite values; expected finite inputs, weights and scores"
    if any(values):
        return None
    return "zero", (
        f"{named} has a map that is zero everywhere: nothing there raises this score, or its gradient is zero, as "
        "after the last attention of a transformer, where only the class token counts"
    )


def note_score(notices: Notices, score: Tensor) -> None:
    """Note that a score is not finite, although the map may be."""
    highest = score.detach().amax().reshape(1)
    text = "the model's score is NaN or infinite; expected finite inputs, weights and scores"
    notices.look(highest, lambda values: None if values[0] < math.inf else ("finite", text))


def _advise(call: Call, site: Site, targets: Targets, values: list[float]) -> str:
    """Advice: the score is not finite, or is 0, or another layer to use. Costs a forward pass, and maybe a search."""
    try:
        with evaluating(call.model, call.modules):
            scores = targets.scores(call.own().run())
    except Exception:  # whatever the reason: the map exists, and this is only advice
        return ""
    if not scores.isfinite().all():
        return "; the score itself is NaN or infinite"
    if not scores.any():
        return "; the score itself is 0, as that of an untrained head of zeros is"
    return "" if not all(map(math.isfinite, values)) else _other_layer(call, site, targets)


def _other_layer(call: Call, site: Site, targets: Targets) -> str:
    """A layer to use instead of the site's: the one found by the search, or else the input."""
    if not site.name:
        return ""
    try:
        name, module = found_layer(call, targets.asked, anew=site.found)
    except Exception:  # as above
        name, module = "", call.model
    return f"; try saliency_layer={'' if module is site.module else name!r}"
