"""Sites: where tensors of a forward pass are recorded."""

from typing import NamedTuple

from torch.nn import Module

from saliency.engine.call import Call
from saliency.engine.layers import Layer, resolve_layer
from saliency.engine.search import found_layer
from saliency.engine.targets import Target


class Site(NamedTuple):
    """Where a probe sits: one side of a module, and how many of the tensors there are explained.

    ``found`` says that the user named no layer, and that no error may blame this one.
    """

    name: str
    module: Module
    side: str
    tensors: int
    found: bool = False


def make_site(
    call: Call, layer: Layer, attribute_to_layer_input: bool = False, target: Target = None, anew: bool = False
) -> Site:
    """Find a layer: ``''`` is the model's input, ``None`` the one that the score of ``target`` shows to be the best.

    A layer that was found is remembered. Where it turns out to get no gradient, ask again with ``anew``: once, for
    what is found then has one.
    """
    if isinstance(layer, str) and not layer:
        floats = sum(tensor.is_floating_point() for tensor in call.inputs)
        if not floats:
            raise ValueError(f"input={call.inputs[0].dtype} has no gradient; a floating-point tensor is accepted.")
        return Site("", call.model, "input", floats)
    side = "input" if attribute_to_layer_input else "output"
    if layer is None:
        return Site(*found_layer(call, target, anew), side, 1, found=True)
    name = layer if isinstance(layer, str) else type(layer).__name__
    return Site(name, resolve_layer(call.model, layer), side, 1)
