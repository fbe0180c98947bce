"""Record: one forward pass with probes on its sites, from which gradients are taken.

For model = Sequential(conv, relu, linear) and the site "output of relu", the pass holds a = relu(conv(x)) as a leaf:
conv leaves no graph, linear does. ``gradients(scores, ones, [a], retain=False)`` then returns da, under the rules of
the context for every operation after the site.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor
from torch.jit import ScriptModule
from torch.nn import Module

from saliency.engine.attending import Attending
from saliency.engine.call import Call, check_parameters
from saliency.engine.checks import shown
from saliency.engine.contexts import RuleContext, make_context
from saliency.engine.probe import Probe, add_hook
from saliency.engine.sending import Sought, differentiate
from saliency.engine.silence import note_idle
from saliency.engine.site import Site, SiteError
from saliency.engine.state import own_copy
from saliency.engine.tracing import TracingContext
from saliency.engine.watching import Grid, Watching, shows_own_grid

ContextBuilder: TypeAlias = Callable[[], AbstractContextManager[object]]


class Pass:
    """One forward pass: its output, the tensors at each site, and the gradients of scores with respect to them."""

    def __init__(self, output: object, tensors: list[list[Tensor]], context: AbstractContextManager[object]) -> None:
        self.output, self.tensors, self.context = output, tensors, context
        self.scores: Tensor | None = None  # the scores of the last backward pass
        self.sent: Tensor | None = None  # their gradient

    def factor(self, x: Tensor) -> Tensor:
        """The factor that turns the gradient at a tensor into an attribution: a copy of the tensor.

        It is 1 if the context sends back the attribution itself.
        """
        whole = isinstance(self.context, TracingContext) and self.context.attributes(x)
        return torch.ones_like(x.detach()) if whole else own_copy(x)

    def gradients(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool, key: Hashable = None
    ) -> list[Tensor | None]:
        """The gradients at the tensors, given the ``gradient`` of ``scores``; equal keys mean equal gradients of the
        output.
        """
        if isinstance(self.context, RuleContext):
            return self.context.send_back(scores, gradient, tensors, retain)
        return differentiate([(scores, gradient)], tensors, retain)


class _SiteProbe(Probe):
    """A probe that keeps the tensors of every call of the module."""

    def _record(self, values: object) -> object:
        values = super()._record(values)
        self.calls.append(self.data)
        self._seen.append(self._watch.of(self.data[0]) if self._watch is not None and self.data else [])
        return values

    def _keep(self, tensor: Tensor) -> Tensor:
        # Further inputs of the model are constants: they need no gradient.
        if len(self.data) == self.site.tensors:
            return tensor
        first = tensor if self._watch is None else self._watch.batch_first(tensor)
        return super()._keep(first) if first is tensor else super()._keep(first).transpose(0, 1)

    def __init__(self, site: Site, grad: bool, watch: Watching | None) -> None:
        self.calls: list[list[Tensor]] = []
        self.site, self._watch = site, watch
        self._seen: list[list[Grid]] = []
        # The model's input is what the caller passed, before the caller's own hooks change it.
        super().__init__(site.module, site.side, enable_grad=grad, prepend=not site.name)

    def tensors(self) -> list[Tensor]:
        """The tensors of the site; ``ValueError`` if there are none."""
        site, count = self.site, len(self.calls)
        if isinstance(site.call, int) and count and not -count <= site.call < count:
            raise ValueError(f"call={shown(site.call)} is not a call of {site.name!r}; expected one of {count} calls.")
        calls = [self.calls[site.call]] if isinstance(site.call, int) and count else self.calls
        found = [x for tensors in calls for x in tensors[: site.tensors]]
        if not found:
            raise SiteError(site, "returned no tensor in the forward pass; expected a layer in use.")
        if site.seen is not None:
            site.seen[:] = self._seen[site.call if isinstance(site.call, int) else -1]
        return found


@contextmanager
def recording(
    call: Call,
    sites: Sequence[Site],
    context_builder: ContextBuilder,
    grad: bool = True,
    attending: Attending | None = None,
) -> Iterator[Pass]:
    """Run the model with probes on the sites; yield the pass, inside the context.

    With ``grad``, a graph is recorded from the first site on; the network before it leaves none. The pass also notes
    the grids that sites need, and, with ``attending``, the attentions. Raises ``ValueError`` for a site that the
    forward pass does not reach, and for TorchScript under a rule context.
    """
    context = check_call(call, context_builder, grad)
    grids = getattr(context, "grids", None)  # a list, if the context asks for them
    watch = Watching() if grids is not None or any(site.seen is not None for site in sites) else None
    watch = watch if attending is None else attending.watch
    if grids is not None:
        grids[:] = [watch]
    with ExitStack() as stack:
        probes = [_SiteProbe(site, grad, watch) for site in sites]
        for probe in probes:
            stack.callback(probe.remove)
        own, before = call.own(), getattr(context, "ran", 0)
        with context:
            with nullcontext() if watch is None else _watching(watch, sites, own.model, attending, grids is not None):
                output = own.run()
            if grad and isinstance(context, RuleContext) and context.ran == before:
                note_idle(call.notices, context, sites)
            yield Pass(output, [probe.tensors() for probe in probes], context)


@contextmanager
def _watching(
    watch: Watching, sites: Sequence[Site], model: Module, attending: Attending | None, whole: bool
) -> Iterator[None]:
    """Watch the ``whole`` pass, or just the layers if their own grids suffice: watching costs a little each time."""
    if attending is not None:
        with attending.around(model), attending, watch:  # reshapes inside multi-head attention are not watched
            yield
        return

    def begin(*args: object) -> None:
        watch.__enter__()  # type: ignore[no-untyped-call]

    def end(*args: object) -> None:
        watch.__exit__(None, None, None)

    layers = [site for site in sites if site.seen is not None]
    if whole or not all(site.side == "output" and shows_own_grid(site.module) for site in layers):
        with watch:
            yield
        return
    with ExitStack() as stack:
        stack.callback(end)  # in case the layer raises
        for site in layers:
            stack.callback(add_hook(site.module.register_forward_pre_hook, begin).remove)
            stack.callback(add_hook(site.module.register_forward_hook, end).remove)
        yield


def check_call(call: Call, context_builder: object, grad: bool) -> AbstractContextManager[object]:
    """The context, if the model can run in it."""
    name = type(call.model).__name__
    check_parameters(call, grad)
    context = make_context(context_builder)
    if isinstance(context, RuleContext) and any(isinstance(part, ScriptModule) for part in call.modules):
        raise ValueError(f"model={name} contains TorchScript, which rules cannot reach; expected an nn.Module.")
    return context
