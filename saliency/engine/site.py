"""Sites: where tensors of a forward pass are recorded."""

from typing import NamedTuple

from torch.nn import Module

from saliency.engine.call import Call
from saliency.engine.checks import is_int, shown
from saliency.engine.layers import Layer, resolve_layer
from saliency.engine.search import found_layer
from saliency.engine.targets import Target
from saliency.engine.watching import Grid, is_convolutional


class Site(NamedTuple):
    """Where a probe is attached: one side of a module, which of its calls, and how many of its tensors are explained.

    ``found`` says that the search chose the layer, so errors must not blame the user for it. ``seen`` is filled by each
    pass with the grids shown before the site; it is ``None`` if nothing needs to be watched.
    """

    name: str
    module: Module
    side: str
    tensors: int | None
    call: int | str = -1
    found: bool = False
    seen: list[Grid] | None = None

    @property
    def said(self) -> str:
        """The layer as messages name it."""
        return f"saliency_layer=None (found: {self.name!r})" if self.found else f"saliency_layer={self.name!r}"


class SiteError(ValueError):
    """A site has nothing to explain. If the layer was remembered from an earlier call, it may be searched again."""

    def __init__(self, site: Site, problem: str) -> None:
        self.site = site
        super().__init__(f"saliency_layer={None if site.found else site.name!r} {problem}")


def make_site(
    call: Call,
    layer: Layer,
    attribute_to_layer_input: bool = False,
    target: Target = None,
    which: int | str = -1,
    whole: bool = False,
    anew: bool = False,
) -> Site:
    """Find a layer: ``''`` is the model's input, ``None`` the one that the search finds for the score of ``target``.

    ``which`` of its calls is explained, or ``'all'``; either the ``whole`` of the tensors there, or the first (as for
    all calls). A layer that was found is remembered; if it turns out to get no gradient, ask again with ``anew``, once:
    what is found then does get one.
    """
    if not is_int(which) and not (isinstance(which, str) and which == "all"):
        raise ValueError(f"call={shown(which)} is not a call of a layer; expected an int or 'all'.")
    which = which if which == "all" else int(which)  # it may be NumPy's
    if isinstance(layer, str) and not layer:
        floats = sum(tensor.is_floating_point() for tensor in call.inputs)
        if not floats:
            raise ValueError(f"input={call.inputs[0].dtype} is not differentiable; expected a floating-point tensor.")
        return Site("", call.model, "input", floats)
    side, tensors = "input" if attribute_to_layer_input else "output", None if whole and which != "all" else 1
    if layer is None:
        name, module = found_layer(call, target, anew)
    else:
        name, module = layer if isinstance(layer, str) else type(layer).__name__, resolve_layer(call.model, layer)
    return Site(name, module, side, tensors, which, layer is None, None if is_convolutional(module) else [])
