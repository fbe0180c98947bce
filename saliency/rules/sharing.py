"""Sharing: one forward pass for many methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn import Module

from saliency.engine.call import Input, make_call
from saliency.engine.driver import as_list
from saliency.engine.layers import Layers
from saliency.engine.operations import Function, Row
from saliency.engine.shared import SharedForward
from saliency.engine.site import make_site
from saliency.rules.activations import GUIDED
from saliency.rules.excitation import EXCITATION


def shared_forward(
    model: Module,
    input: Input,
    saliency_layers: Layers = ("",),
    *,
    additional_forward_args: Any = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    tables: Sequence[Mapping[Function, Row]] = (GUIDED, EXCITATION),
) -> SharedForward:
    """Run the model once for many methods: pass the result to each as its option ``shared``.

    At the given layers, methods need no forward pass of their own: operations with a row in any of the ``tables``
    choose their rule when the gradient comes back, and what two methods need is computed once. A call with another
    model, input or layer, with ``debug``, or with a context that changes the forward pass runs on its own; so does one
    after a parameter, buffer or input was replaced, overwritten or given other ``.data``. Not noticed are writes
    that bypass autograd, such as ``x.data.mul_(2)`` or NumPy's, and changes of hooks or attributes. The graph stays in
    memory as long as the result does; only one thread may use it at a time. Errors: see :func:`saliency`.

    >>> from saliency import grad_cam, gradient
    >>> from saliency.scenes import make_scene, scene_network
    >>> model, image = scene_network(), make_scene(0).image[None]
    >>> shared = shared_forward(model, image, ["", "layer4"])
    >>> cam, fine = grad_cam(model, image, 0, "layer4", shared=shared), gradient(model, image, 0, shared=shared)
    """
    call = make_call(model, input, additional_forward_args, forward_kwargs)
    functions = {function for table in tables for function in table}
    return SharedForward(call, [make_site(call, layer) for layer in as_list(saliency_layers)], functions)
