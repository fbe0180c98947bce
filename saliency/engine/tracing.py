"""Tracing: a context whose rules know where an operation stands in its pass, and its result.

In Sequential(conv, relu, linear) explained at the input, the rule of conv finds ``op.standing.first`` true, that of
linear ``op.standing.last``, and both have their ``op.result``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from saliency.engine.choices import Attributing
from saliency.engine.contexts import Noted, RuleContext
from saliency.engine.graph import node_of
from saliency.engine.kinds import WEIGHTED
from saliency.engine.operations import Function, Operation, Row, Table
from saliency.engine.sending import Sought, differentiate, is_recorded
from saliency.engine.standing import Ledger, owner_of
from saliency.engine.survey import Survey

# A parameter may be added or concatenated, as a constant; any other use of it needs a row.
_ADDS = {
    *("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "rsub", "__sub__", "__rsub__", "__isub__"),
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "where", "masked_scatter", "maximum", "minimum"),
    *("copy_", "__setitem__", "index_put", "index_put_", "index_copy", "scatter", "broadcast_tensors"),
    *("expand_as", "view_as", "reshape_as", "type_as", "to", "result_type", "equal"),
}


class TracingContext(RuleContext):
    """A table whose rules know where an operation stands in the pass, and its result.

    Every operation with weights needs a row; for those of the ``model``, the layer is known. A ``ledger`` receives the
    relevance that operations do not send on.
    """

    def __init__(self, rules: Table, model: Module | None = None, ledger: Ledger | None = None) -> None:
        super().__init__(rules)
        self.ledger = ledger
        self._names: dict[Parameter, str] = {}
        if model is not None:
            self._names = {parameter: name for name, parameter in model.named_parameters()}
        self.surveys: list[Survey] = []  # of the score of the last backward pass

    def run_recorded(self, row: Row, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        """Run an operation, keeping its arguments, its result and its own graph."""
        op = Operation(function, args, kwargs)
        op.ledger = self.ledger
        op.layer = "" if op.owner is None else self._names.get(op.owner, "").rpartition(".")[0]
        return self.keep(op, graph=True)

    def note(self, function: Function, noted: Noted | None) -> None:
        """Also note that an operation with weights ran before the first site, where no gradient is recorded."""
        if function in WEIGHTED and not torch.is_grad_enabled():
            self.force.begun = True
        super().note(function, noted)

    def pass_by(self, function: Function, args: tuple[object, ...]) -> None:
        """Note an operation that multiplies by weights, and has no row."""
        leaves = [
            x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else (arg,)) if isinstance(x, Tensor)
        ]
        owners = [owner for x in leaves if (owner := owner_of(x)) is not None]
        if owners and len(owners) < len(leaves) and function.__name__ not in _ADDS and is_recorded(leaves):
            self.force.unruled[function] = owners[0]

    def send_back(
        self, scores: Tensor, gradient: Tensor, tensors: Sequence[Sought], retain: bool
    ) -> list[Tensor | None]:
        """The gradients at the tensors, or the attribution if a rule returns that for an input."""
        survey = self._survey(scores)
        self._check_rows(survey)
        found = super().send_back(scores, gradient, tensors, retain)
        ended, self.force.ended = self.force.ended, []
        for op, attribution in ended:
            edge, copied, in_front = survey.input_edge(op), survey.copied(op), survey.in_front(op)
            for i, x in enumerate(tensors):
                if not isinstance(x, Tensor):
                    continue  # no activation is explained there
                if node_of(x) in copied:  # contributions along other paths are gradients
                    (own,), dx = differentiate([(edge, attribution)], [x], retain=True), found[i]
                    found[i] = own if own is None or dx is None else own + x.detach() * dx
                elif node_of(x) in in_front:
                    raise ValueError(
                        f"saliency_layer precedes an operation ({op.function.__name__}) whose rule returns the "
                        "attribution of its own input, as flat, w_square and z_box do; expected the layer whose output "
                        "is that input, or another rule."
                    )
        return found

    def attributes(self, x: Tensor) -> bool:
        """Does an attribution, not a gradient, come back at this tensor?"""
        return any(
            isinstance(self.force.row(op), Attributing) and node_of(x) in survey.copied(op)
            for survey in self.surveys
            for op in survey.operations
            if op.function in WEIGHTED
        )

    def _survey(self, scores: Tensor) -> Survey:
        if not self.surveys or self.surveys[0].root is not node_of(scores):
            self.surveys[:] = [Survey(scores, self.force.begun)]
        return self.surveys[0]

    def _check_rows(self, survey: Survey) -> None:
        """Raise ``ValueError`` for an operation with weights that has no row."""
        kept = {op.function: op.owner for op in survey.operations if self.force.row(op) is None}
        weighted = {function: owner for function, owner in kept.items() if function.__name__ not in _ADDS}
        for function, owner in {**self.force.unruled, **weighted}.items():
            if owner is not None:
                name = self._names.get(owner, "")
                raise ValueError(
                    f"rules have no row for {function.__name__} with the weights {name!r} {tuple(owner.shape)}; "
                    "expected a table with one, {**table, function: Rule(...)}, or a layer after it."
                )
