"""One forward pass with probes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import Tensor
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy

from saliency.engine.call import Call
from saliency.engine.contexts import RuleContext
from saliency.engine.probe import Probe
from saliency.engine.site import Site

ContextBuilder: TypeAlias = Callable[[], AbstractContextManager[Any]]


@contextmanager
def recording(
    call: Call, sites: Sequence[Site], context_builder: ContextBuilder, grad: bool = True
) -> Iterator[tuple[Any, list[list[Tensor]]]]:
    """Run the model with probes on the sites; give, inside the context, its output and each site's tensors.

    With ``grad`` a graph is recorded from the first site on; the network in front of it leaves none.
    Raises ``ValueError`` for a site that the forward pass does not reach, and for TorchScript under a rule context.
    """
    if any(is_lazy(parameter) for parameter in call.parameters):
        raise ValueError(f"model={type(call.model).__name__} has lazy parameters; a model that ran once is accepted.")
    if grad and any(parameter.is_inference() for parameter in call.parameters):
        raise ValueError(
            f"model={type(call.model).__name__} was built inside inference_mode, which rules out gradients; "
            "a model built outside is accepted, and may be explained inside."
        )
    if not callable(context_builder):
        raise ValueError(f"context_builder={context_builder!r} is not callable; a context class is accepted.")
    context = context_builder()
    if isinstance(context, RuleContext) and any(isinstance(part, ScriptModule) for part in call.modules):
        raise ValueError(
            f"model={type(call.model).__name__} holds TorchScript, which no rule reaches; an nn.Module does not."
        )
    with ExitStack() as stack:
        probes = [stack.enter_context(Probe(site.module, site.side, enable_grad=grad)) for site in sites]
        own = call.own()
        with context:
            output = own.run()
            for site, probe in zip(sites, probes, strict=True):
                if not probe.data:
                    raise ValueError(
                        f"saliency_layer={site.name!r} gave no tensor in the forward pass; a layer in use is accepted."
                    )
            yield output, [probe.data[: site.tensors] for site, probe in zip(sites, probes, strict=True)]
