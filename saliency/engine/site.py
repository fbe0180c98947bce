"""Sites: where tensors of a forward pass are recorded."""

from typing import NamedTuple

from torch.nn import Module

from saliency.engine.call import Call
from saliency.engine.checks import is_int
from saliency.engine.layers import Layer, find_layer, resolve_layer


class Site(NamedTuple):
    """Where a probe sits: one side of a module, in which of its calls, and how many of the tensors are explained."""

    name: str
    module: Module
    side: str
    tensors: int | None
    call: int | str = -1


def make_site(
    call: Call, layer: Layer, attribute_to_layer_input: bool = False, which: int | str = -1, whole: bool = False
) -> Site:
    """Find a layer: ``''`` is the model's input, ``None`` the last layer with spatial output.

    ``which`` of its calls is explained, or ``'all'``; the ``whole`` of the tensors there, or the first.
    """
    if which != "all" and not is_int(which):
        raise ValueError(f"call={which!r} is not a call of a layer; expected an int or 'all'.")
    if isinstance(layer, str) and not layer:
        floats = sum(tensor.is_floating_point() for tensor in call.inputs)
        if not floats:
            raise ValueError(f"input={call.inputs[0].dtype} has no gradient; a floating-point tensor is accepted.")
        return Site("", call.model, "input", floats)
    if layer is None:
        layer = find_layer(call.model, *call.inputs, *call.args, **call.kwargs)
    side = "input" if attribute_to_layer_input else "output"
    name = layer if isinstance(layer, str) else type(layer).__name__
    return Site(name, resolve_layer(call.model, layer), side, None if whole else 1, which)
