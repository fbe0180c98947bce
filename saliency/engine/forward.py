"""One forward pass with probes: how the model is called, and where it is probed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.jit import ScriptModule
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from saliency.engine.contexts import RuleContext
from saliency.engine.layers import Layer, find_layer, resolve_layer
from saliency.engine.probe import Probe
from saliency.engine.state import own_copy

Input: TypeAlias = Tensor | tuple[Tensor, ...]
ContextBuilder: TypeAlias = Callable[[], AbstractContextManager[Any]]


class Call(NamedTuple):
    """How the model is called: the explained inputs first, then what else reaches its ``forward``."""

    inputs: tuple[Tensor, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Site(NamedTuple):
    """Where a probe sits: one side of a module, and how many of the tensors there are explained."""

    name: str
    module: Module
    side: str
    tensors: int


def make_call(input: Any, additional_forward_args: Any = None, forward_kwargs: Any = None) -> Call:
    """Check what reaches the model. Raises ``ValueError`` for an input that is no batch of tensors."""
    inputs = tuple(input) if isinstance(input, (tuple, list)) else (input,)
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise ValueError(f"input={type(input).__name__} is no tensor; a tensor (N, C, H, W) or a tuple is accepted.")
    if any(tensor.ndim < 2 or not len(tensor) for tensor in inputs):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        raise ValueError(f"input={shapes} is no batch of samples; a tensor (N, C, H, W) with N > 0 is accepted.")
    extra = additional_forward_args
    args = () if extra is None else tuple(extra) if isinstance(extra, (tuple, list)) else (extra,)
    if not isinstance(forward_kwargs, (Mapping, type(None))):
        raise ValueError(f"forward_kwargs={forward_kwargs!r} is no mapping; a dict of keyword arguments is accepted.")
    return Call(inputs, args, dict(forward_kwargs or {}))


def make_site(model: Module, layer: Layer, call: Call, attribute_to_layer_input: bool = False) -> Site:
    """Find a layer: ``''`` is the model's input, ``None`` the last layer with spatial output."""
    if isinstance(layer, str) and not layer:
        floats = sum(tensor.is_floating_point() for tensor in call.inputs)
        if not floats:
            raise ValueError(f"input={call.inputs[0].dtype} has no gradient; a floating-point tensor is accepted.")
        return Site("", model, "input", floats)
    if layer is None:
        layer = find_layer(model, *call.inputs, *call.args, **call.kwargs)
    name = layer if isinstance(layer, str) else type(layer).__name__
    return Site(name, resolve_layer(model, layer), "input" if attribute_to_layer_input else "output", 1)


def take_rows(call: Call, index: Tensor) -> Call:
    """The call with the rows of its batch in the order of ``index``; nothing of it is shared with the caller.

    Tensors of as many rows as the input has go along, all others stay as they are; so does a vector of one float.
    """
    samples = call.inputs[0].shape[:1]

    def take(tensor: Tensor) -> Tensor:
        single = tensor.shape == (1,) and tensor.is_floating_point()  # a factor, not one image's label
        along = tensor.shape[:1] == samples and not single
        return tensor.detach()[index.to(tensor.device)] if along else own_copy(tensor)

    return Call(*tree_map_only(Tensor, take, tuple(call)))


def run_rows(model: Module, call: Call, tensors: Tensor, index: Tensor, at: int = 0) -> Any:
    """The model's output for ``tensors`` in place of one of the inputs; all else follows the rows of ``index``."""
    others = list(call.inputs)
    others[at] = tensors.new_empty(len(others[at]), 0)  # need not be copied
    inputs, args, kwargs = take_rows(call._replace(inputs=tuple(others)), index)
    return model(*inputs[:at], tensors, *inputs[at + 1 :], *args, **kwargs)


@contextmanager
def recording(
    model: Module, call: Call, sites: Sequence[Site], context_builder: ContextBuilder, grad: bool = True
) -> Iterator[tuple[Any, list[list[Tensor]]]]:
    """Run the model with probes on the sites; give, inside the context, its output and each site's tensors.

    With ``grad`` a graph is recorded from the first site on; the network in front of it leaves none.
    Raises ``ValueError`` for a site that the forward pass does not reach, and for TorchScript under a rule context.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError(f"model={type(model).__name__} has lazy parameters; a model that ran once is accepted.")
    if grad and any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            f"model={type(model).__name__} was built inside inference_mode, which rules out gradients; "
            "a model built outside is accepted, and may be explained inside."
        )
    if not callable(context_builder):
        raise ValueError(f"context_builder={context_builder!r} is not callable; a context class is accepted.")
    context = context_builder()
    if isinstance(context, RuleContext) and any(isinstance(part, ScriptModule) for part in model.modules()):
        raise ValueError(
            f"model={type(model).__name__} holds TorchScript, which no rule reaches; an nn.Module does not."
        )
    with ExitStack() as stack:
        probes = [stack.enter_context(Probe(site.module, site.side, enable_grad=grad)) for site in sites]
        inputs, args, kwargs = tree_map_only(Tensor, own_copy, tuple(call))
        with context:
            output = model(*inputs, *args, **kwargs)
            for site, probe in zip(sites, probes, strict=True):
                if not probe.data:
                    raise ValueError(
                        f"saliency_layer={site.name!r} gave no tensor in the forward pass; a layer in use is accepted."
                    )
            yield output, [probe.data[: site.tensors] for site, probe in zip(sites, probes, strict=True)]
