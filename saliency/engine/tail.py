"""Tail: the network from a layer on, evaluated for many activations of one sample, whose front runs only once.

For a layer with activation a (1, ...), ``tail(torch.cat([a, 0 * a]))`` gives the output in 2 rows: that of the sample,
and that with the layer's activation set to 0.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.hooks import RemovableHandle

from saliency.engine.call import Call
from saliency.engine.contexts import NullContext, make_context
from saliency.engine.front import Front, Recording
from saliency.engine.interrupts import is_interrupted
from saliency.engine.outputs import Output
from saliency.engine.probe import add_hook
from saliency.engine.record import ContextBuilder
from saliency.engine.site import Site
from saliency.engine.watching import Watching

_TF32_ROUNDING = 2**-10  # of float32 on devices that use TF32


class Tail:
    """Evaluate a model with a layer's tensor replaced by S others, for one sample: ``tail(activations)``.

    ``activation`` (1, ...) is the layer's own tensor, ``output`` the model's output for it. A call takes (S, ...) and
    returns the output for S rows, with gradients back to the activations. If a layer is called several times,
    the last call counts; of several tensors, the first floating-point one is replaced. The front is replayed
    (``saliency/engine/front.py``); if that raises, or does not reproduce the known output, the model runs on S copies
    of the input from then on, as with ``copies`` from the start. ``record_all``: gradients are on in the front too,
    for models that set the grad mode themselves around the layer. Use it inside ``evaluating(model)``.
    Raises ``ValueError`` for a layer that is not reached, or does not return one row per sample.
    """

    def __init__(
        self,
        site: Site,
        call: Call,
        record_all: bool = False,
        context_builder: ContextBuilder = NullContext,
        copies: bool = False,
    ) -> None:
        self.site, self.call = site, call
        self.record_all, self.context_builder = record_all, context_builder
        self._calls = 0
        self._turns = False  # is the layer's tensor (L, N, C)?
        self._front = self._record()
        self.replays = not copies and self._comes_to_the_known_output()

    def __call__(self, activations: Tensor) -> Output:
        """The model's output for S activations, in a context of its own."""
        with make_context(self.context_builder):
            return self.run(activations)

    def run(self, activations: Tensor) -> Output:
        """Like a call, but inside a context that is already open, and may have to stay open for the backward pass."""
        if self.replays:
            try:
                return self._replay(activations)
            except Exception:  # whatever the reason; an error of the model itself is raised again by the copies
                if is_interrupted():
                    raise
                self.replays = False
        index = torch.zeros(len(activations), dtype=torch.long, device="cpu")
        return self._run(self.call.rows(index), activations.clone(), nullcontext(), lambda: None)

    def _replay(self, activations: Tensor) -> Output:
        replay = self._front.replay(len(activations))
        inputs, args, kwargs = replay.given
        x = activations.clone() if self._overwritten else activations[...]
        return self._run(replace(self.call, inputs=inputs, args=args, kwargs=kwargs), x, replay, replay.finish)

    def _run(self, call: Call, x: Tensor, mode: AbstractContextManager[object], reached: Callable[[], None]) -> Output:
        grad, left = torch.is_grad_enabled(), self._calls

        def put(values: object) -> object:
            nonlocal left
            left -= 1
            if left:
                return values
            reached()
            torch.set_grad_enabled(grad)
            leaves, structure = tree_flatten(values)
            at = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point())
            return tree_unflatten([*leaves[:at], self._turned(x), *leaves[at + 1 :]], structure)

        with ExitStack() as stack:
            stack.callback(self._hook(put).remove)
            stack.enter_context(torch.set_grad_enabled(grad and self.record_all))
            stack.enter_context(mode)
            return call.run()

    def _record(self) -> Front:
        own = self.call.own()
        recording = Recording((own.inputs, own.args, own.kwargs))
        found: list[Tensor] = []
        watch = None if self.site.seen is None else Watching()

        def mark(values: object) -> None:
            self._calls += 1
            found[:] = [x for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()][:1]
            recording.mark(found)
            if found and self.site.seen is not None and watch is not None:
                first = watch.batch_first(found[0])
                self._turns, self.site.seen[:] = first is not found[0], watch.of(first)

        with torch.no_grad(), ExitStack() as stack:
            stack.callback(self._hook(mark).remove)
            for context in (make_context(self.context_builder), recording.uses, recording, watch or nullcontext()):
                stack.enter_context(context)
            output = own.run()
        name = self.site.said
        if not found:
            raise ValueError(f"{name} returned no tensor in the forward pass; expected a layer in use.")
        front = recording.settle(output)
        self.output = tree_map_only(Tensor, torch.Tensor.detach, output)
        self.activation = self._turned(recording.as_marked(found[0]).detach())
        self._overwritten = recording.is_overwritten(found[0])
        if self.activation.shape[:1] != (1,):
            shape = tuple(self.activation.shape)
            raise ValueError(f"{name} returns {shape}, not a batch of 1; expected a layer with one row per image.")
        return front

    def _turned(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1) if self._turns else x

    def _comes_to_the_known_output(self) -> bool:
        """Try the activation itself after a different row, to detect models that mix rows, or use the first for all."""
        x = self.activation
        other = x.reshape(1, -1).flip(1).view(x.shape) / 2
        try:
            with torch.no_grad(), make_context(self.context_builder):
                output = self._replay(torch.cat([other, x]))
            return _ends_in(output, self.output, _rounding(x))
        except Exception:  # whatever the reason: the model does not support it
            if is_interrupted():
                raise
            return False

    def _hook(self, function: Callable[[object], object]) -> RemovableHandle:
        """Pass what goes into the layer, or comes out of it, through a function that is not part of the model."""

        def run(values: object) -> object:
            with torch._C.DisableTorchFunction():
                return function(values)

        module = self.site.module
        if self.site.side == "output":
            return add_hook(module.register_forward_hook, lambda module, args, output: run(output))
        before = module.register_forward_pre_hook
        return add_hook(before, lambda module, args, kwargs: run((args, kwargs)), with_kwargs=True)


def _ends_in(output: object, known: object, rounding: float) -> bool:
    """Do all float tensors of an output have two rows, the second of which is known?"""
    pairs = zip(tree_leaves(output), tree_leaves(known), strict=True)
    batches = [(x, y) for x, y in pairs if isinstance(y, Tensor) and y.is_floating_point() and y.shape[:1] == (1,)]
    return bool(batches) and all(x.shape == (2, *y.shape[1:]) and _close(x[1:], y, rounding) for x, y in batches)


def _close(found: Tensor, known: Tensor, rounding: float) -> bool:
    r"""Are they equal up to accumulated rounding, relative to the largest? On the meta device they count as equal.

    The limit is between the rounding of one operation and its square root: :math:`\epsilon^{2/3}` is 2e-5 in float32.
    """
    if known.is_meta or not known.numel():
        return True
    precision = torch.promote_types(known.dtype, torch.float32)
    largest = float(torch.where(known.isfinite(), known, 0).abs().max())
    limit = max(rounding, _rounding(known)) ** (2 / 3) * largest
    return torch.allclose(found.to(precision), known.to(precision), rtol=0, atol=limit, equal_nan=True)


def _rounding(x: Tensor) -> float:
    """The rounding error of a single operation in the precision of a tensor."""
    device, rounding = x.device.type, torch.finfo(x.dtype).eps
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        rounding = max(rounding, torch.finfo(torch.get_autocast_dtype(device)).eps)
    return max(rounding, _TF32_ROUNDING) if device != "cpu" and x.dtype == torch.float32 else rounding
