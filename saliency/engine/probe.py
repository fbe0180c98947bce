"""Probes: record the input or output of a layer, with its gradient."""

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from saliency.engine.checks import check_flag, check_model, check_type, shown
from saliency.engine.nesting import here

_registering = threading.Lock()  # threads may hook the same module, and PyTorch numbers hooks without a lock


def add_hook(
    register: Callable[..., RemovableHandle], hook: Callable[..., object], **options: object
) -> RemovableHandle:
    """Register a hook that acts on calls of this thread only and, inside a saliency call, not on those nested in it."""
    thread, call = threading.get_ident(), here.call

    def own_calls(*args: object) -> object:
        return hook(*args) if threading.get_ident() == thread and call in (None, here.call) else None

    with _registering:
        try:
            return register(own_calls, **options)
        except RuntimeError as error:  # PyTorch's own refusal
            raise ValueError("model=TorchScript does not accept hooks; expected the original nn.Module.") from error


class Probe:
    """Record the tensors that a module is given (``target='input'``) or returns (``'output'``).

    ``data`` lists the floating-point tensors of the module's last call; after ``backward`` each has its ``.grad``. The
    model continues with a copy, so a later in-place operation does not change ``data``. Only calls made by the thread
    that created the probe are recorded. ``enable_grad=True`` switches gradients on when the layer is reached;
    ``prepend=True`` records before the module's other hooks. Use :meth:`remove`, or ``with``, to detach it.

    >>> relu = torch.nn.ReLU(inplace=True)
    >>> with Probe(relu) as probe:
    ...     relu(torch.tensor([-1.0, 2.0])).sum().backward()
    >>> probe.data[0].tolist(), probe.data[0].grad.tolist()
    ([-1.0, 2.0], [0.0, 1.0])
    """

    def __init__(
        self, module: Module, target: str = "input", *, enable_grad: bool = False, prepend: bool = False
    ) -> None:
        if not isinstance(target, str) or target not in ("input", "output"):
            raise ValueError(f"target={shown(target)} is not a side of a layer; expected 'input' or 'output'.")
        check_type("module", module, Module, "a torch.nn.Module")
        self.module = module
        self.target = target
        self.data: list[Tensor] = []
        self._enable_grad = enable_grad
        if target == "input":
            self._hook = add_hook(
                module.register_forward_pre_hook, self._catch_input, with_kwargs=True, prepend=prepend
            )
        else:
            self._hook = add_hook(module.register_forward_hook, self._catch_output, prepend=prepend)

    def remove(self) -> None:
        """Detach the probe from its module. ``data`` is kept."""
        self._hook.remove()

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _catch_input(self, module: Module, args: object, kwargs: object) -> object:
        return self._record((args, kwargs))

    def _catch_output(self, module: Module, args: object, output: object) -> object:
        return self._record(output)

    def _record(self, values: object) -> object:
        with torch._C.DisableTorchFunction():  # the probe is not part of the model
            if self._enable_grad:
                torch.set_grad_enabled(True)
            self.data = []
            return tree_map_only(Tensor, self._keep, values)

    def _keep(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if tensor.requires_grad and torch.is_grad_enabled():
            # A view: tensor hooks set by a rule belong to the layer, not to what follows it.
            # Not view_as: it invents strides for a batch of one, from which kernels infer another memory format.
            tensor = tensor[...]
            tensor.retain_grad()
        else:
            tensor = tensor.detach().requires_grad_()
        self.data.append(tensor)
        return tensor.clone()


def attach_debug_probes(model: Module, debug: bool = False) -> "OrderedDict[str, Probe] | None":
    """Probe every module's output, and the model's input under the name ``''``; ``None`` unless ``debug``.

    >>> list(attach_debug_probes(torch.nn.Sequential(torch.nn.ReLU()), debug=True))
    ['', '0']
    """
    check_model(model)
    check_flag("debug", debug)
    if not debug:
        return None
    probes: OrderedDict[str, Probe] = OrderedDict()
    try:
        for name, module in model.named_modules():
            probes[name] = Probe(module, "output" if name else "input", prepend=not name)
    except BaseException:
        for probe in probes.values():
            probe.remove()
        raise
    return probes
