"""CAMs of several layers, fused into one map."""

from torch import Tensor
from torch.nn import Module
from typing_extensions import Unpack

from saliency.engine.call import Input, make_call
from saliency.engine.checks import check_flag
from saliency.engine.driver import as_list
from saliency.engine.fusing import fuse_maps
from saliency.engine.layers import Layers
from saliency.engine.layouts import Layout
from saliency.engine.maps import Resize, check_map_options, finish_map
from saliency.engine.record import ContextBuilder
from saliency.engine.search import last_of_each_grid
from saliency.engine.signatures import WalkOptions
from saliency.engine.targets import Target
from saliency.methods.cam import grad_cam_plus_plus


class RefineOptions(WalkOptions, total=False):
    """Options of a method that finishes its map itself."""

    context_builder: ContextBuilder


# Not `typed`: for a list of layers, it returns one map.
def refine_cam(
    model: Module,
    input: Input,
    target: Target,
    saliency_layer: Layers = None,
    resize: Resize = False,
    resize_mode: str = "bilinear",
    smooth: float = 0,
    *,
    layout: Layout = None,
    **options: Unpack[RefineOptions],
) -> Tensor:
    r"""RefineCAM: the product of the Grad-CAM++ maps of several layers, each scaled to [0, 1].

    .. math:: s_{n1u} = \prod_l \frac{m_{lu}}{\max_v m_{lv}}

    with the maps :math:`m_l` resized to the largest of them: deep layers say what counts, shallow layers where its
    edges are. (N, 1, h, w), in [0, 1]. ``saliency_layer`` is a list; ``None`` selects the last layer of each
    resolution. For other CAMs, use ``fused(method, 'product', gamma=None)``. How to Evaluate and Refine your CAM,
    2026. Options and errors: see :func:`saliency`.
    """
    check_flag("debug", options.get("debug", False))
    if options.get("debug"):
        raise ValueError("debug=True is not possible for a map of several layers; expected debug=False.")
    call = make_call(model, input, options.get("additional_forward_args"), options.get("forward_kwargs"))
    check_map_options(resize, resize_mode, smooth, layout, call.image)
    layers = last_of_each_grid(call, target) if saliency_layer is None else as_list(saliency_layer)
    maps = grad_cam_plus_plus(model, input, target, layers, layout=layout, **options)
    return finish_map(fuse_maps(maps, "product", None), call.image_of(), resize, resize_mode, smooth)
