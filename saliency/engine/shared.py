"""Shared: one forward pass that is recorded and kept, for methods with any rules."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from operator import is_
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_leaves

from saliency.engine.attending import Attending
from saliency.engine.call import Call
from saliency.engine.checks import shown
from saliency.engine.contexts import NullContext, RuleContext
from saliency.engine.operations import RELUS, Function, Operation, Row, Rule, memory_of
from saliency.engine.record import ContextBuilder, Pass, check_call, recording
from saliency.engine.sending import Sought, keep_relu, overwrites_earlier_view
from saliency.engine.silence import note_idle
from saliency.engine.site import Site
from saliency.engine.state import autocast_dtype, evaluating, model_device
from saliency.engine.tracing import TracingContext

# What was asked of a kept pass (rules, kind of context, target), with the gradient found for each tensor.
Found: TypeAlias = list[tuple[list[object], dict[Sought, Tensor | None]]]


class _Recorder(TracingContext):
    """Record every watched operation, whichever rule will apply to its gradient."""

    def __init__(self, functions: Collection[Function], model: Module) -> None:
        super().__init__(dict.fromkeys(functions, Rule(Operation.derivative)), model)
        self.force.table = {}
        self.history = []
        self.seen: set[Function] = set()

    def run_recorded(self, row: Row, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        self.seen.add(function)
        if function in RELUS:
            return keep_relu(self.force, function, args, kwargs)
        return super().run_recorded(row, function, args, kwargs)

    def suits(self, context: AbstractContextManager[object]) -> bool:
        """Can a backward pass run under the rules of this context?"""
        if not isinstance(context, RuleContext):
            return type(context) is NullContext
        fits = context.rules.keys() <= self.rules.keys()
        return fits and context.is_table and not any(isinstance(context.rules.get(relu), Rule) for relu in RELUS)


class SharedForward:
    """One forward pass that is recorded and kept: each backward pass through it runs under its own rules.

    Operations among ``functions`` look up their rule when the gradient comes back.
    """

    def __init__(self, call: Call, sites: Sequence[Site], functions: Collection[Function]) -> None:
        self._call, self._sites, self._places = call, sites, [_place(site) for site in sites]
        self._versions: list[tuple[Tensor, int]] = []
        self._memory: list[tuple[Tensor, int]] = []  # changed by x.data = ...
        self._note([*tree_leaves(_given(call)), *call.state])
        self._precision = autocast_dtype(model_device(call.model))
        try:
            self._record(functions)
        except RuntimeError as error:
            if not overwrites_earlier_view(error):
                raise
            self._record(functions, record_all=True)
        self._note(tree_leaves(self.output))
        self._found: Found = []

    def _record(self, functions: Collection[Function], record_all: bool = False) -> None:
        """Run the model; with ``record_all``, gradients are on from its input on."""
        call = self._call
        self._recorder, self._attending = _Recorder(functions, call.model), Attending(call.samples)
        with (
            evaluating(call.model, call.modules),
            torch.set_grad_enabled(record_all),
            recording(call, self._sites, lambda: self._recorder, attending=self._attending) as recorded,
        ):
            self._pass = recorded

    @property
    def output(self) -> object:
        """What the model returned, with its graph."""
        return self._pass.output

    @contextmanager
    def recording(
        self,
        call: Call,
        sites: Sequence[Site],
        context_builder: ContextBuilder,
        grad: bool = True,
        attending: Attending | None = None,
    ) -> Iterator[Pass]:
        """Like :func:`recording`; another call, or a context that is not a table of rules, runs a pass of its own."""
        context = check_call(call, context_builder, grad)
        places = [_place(site) for site in sites]
        if not (
            self._is_own(call) and all(place in self._places for place in places) and self._recorder.suits(context)
        ):
            with recording(call, sites, lambda: context, grad, attending) as own:
                yield own
            return
        if attending is not None:
            attending.found[:] = self._attending.found
        if (grids := getattr(context, "grids", None)) is not None:
            grids[:] = [self._attending.watch]
        if isinstance(context, RuleContext) and context.history is not None:
            context.history = [*(self._recorder.history or ())]
        if isinstance(context, TracingContext):
            context.force, context.surveys = self._recorder.force, self._recorder.surveys
        self._recorder.force.table = getattr(context, "rules", {})
        if grad and isinstance(context, RuleContext) and context.rules.keys().isdisjoint(self._recorder.seen):
            note_idle(call.notices, context, sites)
        torch.set_grad_enabled(grad)  # as a probe does: the target may be a function of the output
        with context:  # its rules apply to that function too
            own_sites = [self._places.index(place) for place in places]
            for site, at in zip(sites, own_sites, strict=True):
                if site.seen is not None:
                    site.seen[:] = self._sites[at].seen or ()
            tensors = [self._pass.tensors[at] for at in own_sites]
            yield _KeptPass(self._pass.output, tensors, context, self._found)

    def _note(self, values: Sequence[object]) -> None:
        """Remember the tensors among some values as they are now."""
        tensors = [x for x in values if isinstance(x, Tensor)]
        with torch._C.DisableTorchFunction():
            self._versions += [(x, x._version) for x in tensors if not x.is_inference()]
            self._memory += [(x, memory_of(x)) for x in tensors if x.layout is torch.strided]

    def _is_own(self, call: Call) -> bool:
        """Is this the call of the kept pass, with its inputs, state and results unchanged since?"""
        (given, tree), (own_given, own_tree) = map(tree_flatten, map(_given, (call, self._call)))
        values, own_values = [*given, *call.state], [*own_given, *self._call.state]
        return (
            call.model is self._call.model
            and tree == own_tree
            and len(values) == len(own_values)
            and all(map(is_, values, own_values))
            and all(x._version == version for x, version in self._versions)
            and all(memory_of(x) == memory for x, memory in self._memory)
            and self._precision == autocast_dtype(model_device(call.model))
        )


def check_shared(shared: object) -> None:
    """Raise ``ValueError`` for anything but a kept pass."""
    if not (shared is None or isinstance(shared, SharedForward)):
        raise ValueError(f"shared={shown(shared)} is not a recorded pass; expected shared_forward(...) or None.")


class _KeptPass(Pass):
    """A pass that does not compute again what an earlier method has asked of it."""

    def __init__(
        self, output: object, tensors: list[list[Tensor]], context: AbstractContextManager[object], found: Found
    ) -> None:
        super().__init__(output, tensors, context)
        self._found = found

    def gradients(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool, key: Hashable = None
    ) -> list[Tensor | None]:
        known = self._known(key)
        missing = [x for x in tensors if x not in known]
        if missing:
            known |= zip(missing, super().gradients(scores, gradient, missing, True), strict=True)
        return [None if (dx := known[x]) is None else dx.clone() for x in tensors]

    def _known(self, key: Hashable) -> dict[Sought, Tensor | None]:
        """The gradients found earlier under the same rules, for the same target."""
        asked = [getattr(self.context, "rules", None), type(self.context), key]
        for (rules, *rest), known in self._found if key is not None else ():
            if rules is asked[0] and rest == asked[1:]:
                return known
        found: dict[Sought, Tensor | None] = {}
        if key is not None:
            self._found.append((asked, found))
        return found


def _place(site: Site) -> tuple[object, ...]:
    return site.module, site.side, site.call, site.tensors


def _given(call: Call) -> tuple[object, ...]:
    return call.inputs, call.args, dict(call.kwargs)
