"""Contexts: how the backward pass runs. A rule replaces one operation while its context is open."""

import importlib
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

Rule = Callable[..., Any]  # rule(function, *args, **kwargs) -> what function(*args, **kwargs) returns
Rules = Mapping[Callable[..., Any], Rule]

# Activations that are no ReLU but are used as one: a rule acts on their own derivative.
ACTIVATIONS = (
    *(F.relu6, F.hardtanh, F.hardtanh_, F.leaky_relu, F.leaky_relu_, F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_),
    *(F.prelu, torch.prelu, Tensor.prelu),
    *(F.elu, F.elu_, F.celu, torch.celu, torch.celu_, F.selu, torch.selu, torch.selu_),
    *(F.gelu, F.silu, F.hardswish, F.mish),
)

_state = threading.local()  # is this thread inside a rule? Then contexts further out leave the operation alone.


class NullContext:
    """Change nothing: the plain backward pass."""

    def __enter__(self) -> "NullContext":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Patch:
    """Replace the callable at a dotted path, such as ``'torch.relu'``, until :meth:`remove` is called.

    A patch is seen by the whole process; contexts are local to the thread that opened them.

    >>> patch = Patch('torch.relu', torch.neg)
    >>> torch.relu(torch.tensor(2.0))
    tensor(-2.)
    >>> patch.remove()
    >>> torch.relu(torch.tensor(2.0))
    tensor(2.)
    """

    def __init__(self, target: str, new_callable: Callable[..., Any]) -> None:
        path, _, self.attribute = target.rpartition(".")
        self.target: Any = _import(path) if path else None
        if not callable(getattr(self.target, self.attribute, None)):
            raise ValueError(f"target={target!r} names no callable; a path such as 'torch.relu' is accepted.")
        self.orig_callable = getattr(self.target, self.attribute)
        setattr(self.target, self.attribute, new_callable)

    def remove(self) -> None:
        """Put the original callable back."""
        if self.target is not None:
            setattr(self.target, self.attribute, self.orig_callable)
        self.target = None


def _import(path: str) -> Any:
    """The module or attribute at a dotted path; ``None`` if there is none."""
    try:
        return importlib.import_module(path)
    except ImportError:
        parent, _, name = path.rpartition(".")
        return getattr(_import(parent), name, None) if parent else None


class RuleContext(TorchFunctionMode):
    """Replace operations by rules: ``rules`` maps a torch function to ``rule(function, *args, **kwargs)``.

    The context sees modules, functional calls and tensor methods alike, in an unmodified model; it is local to the
    thread. Of several open contexts that know an operation, the innermost one rules. What activation checkpointing
    computes again during the backward pass is outside the context: switch checkpointing off. For
    :func:`saliency.shared_forward` a class of contexts is ``exact`` if its rules give what the operations give, and
    change only what is sent back; and ``switchable`` if, besides, they replace activation functions alone, and need of
    the input of a ReLU no more than its positive part: then they may be chosen when the gradient comes back.

    >>> with RuleContext({torch.relu: lambda function, x: function(x) + 1}):
    ...     torch.relu(torch.tensor([-1.0, 2.0]))
    tensor([1., 3.])
    """

    exact = switchable = False

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = self.rules.get(func)
        if rule is None or getattr(_state, "in_rule", False):
            return func(*args, **kwargs) if kwargs else func(*args)
        _state.in_rule = True
        try:
            return rule(func, *args, **(kwargs or {}))
        finally:
            _state.in_rule = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Contexts may overlap without being nested (generators do that): take out this one, not the topmost.
        inner = []
        while (mode := _pop_mode()) is not self:
            inner.append(mode)
        for mode in reversed(inner):
            _push_mode(mode)


def _is_relu(bounds: Mapping[str, Any]) -> bool:
    """Is this clamp, or this threshold, the function max(0, x)?"""
    if "threshold" in bounds:
        return _is_number(bounds["threshold"], 0) and _is_number(bounds.get("value"), 0)
    open_end = bounds.get("max") is None or _is_number(bounds["max"], math.inf)
    return _is_number(bounds.get("min"), 0) and open_end


def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, (int, float)) and value == number


def _if_relu(rule: Rule, names: tuple[str, ...]) -> Rule:
    def conditional(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        bounds = dict(zip(names, args, strict=False)) | kwargs
        return rule(function, *args, **kwargs) if _is_relu(bounds) else function(*args, **kwargs)

    return conditional


def relu_rules(rule: Rule) -> dict[Callable[..., Any], Rule]:
    """The table that applies one rule to ReLU in all its spellings, in place or not."""
    clamp, threshold = _if_relu(rule, ("input", "min", "max")), _if_relu(rule, ("input", "threshold", "value"))
    rules: dict[Callable[..., Any], Rule] = {F.relu: rule, F.threshold: threshold}
    for name in ("relu", "relu_", "clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"):
        named = rule if name.startswith("relu") else clamp
        rules |= {getattr(torch, name): named, getattr(Tensor, name): named}
    return rules | {torch.threshold: threshold, torch.threshold_: threshold}


def activation_rules(rule: Rule) -> dict[Callable[..., Any], Rule]:
    """The table that applies one rule to every activation function that gates its input."""
    return relu_rules(rule) | dict.fromkeys(ACTIVATIONS, rule)


def is_inplace(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Does this call overwrite its first argument?"""
    return function.__name__.endswith("_") or bool(kwargs.get("inplace")) or any(arg is True for arg in args)


def _replace_relu(
    relu_func: type[torch.autograd.Function], function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    if is_inplace(function, *args, **kwargs):
        return input.copy_(relu_func.apply(input.clone()))
    output: Tensor = relu_func.apply(input)
    return output


class ReLUContext(RuleContext):
    """Replace ReLU, however it is spelled, by ``relu_func``, a :class:`torch.autograd.Function` of one tensor."""

    def __init__(self, relu_func: type[torch.autograd.Function]) -> None:
        if not (isinstance(relu_func, type) and issubclass(relu_func, torch.autograd.Function)):
            raise ValueError(f"relu_func={relu_func!r} is no subclass of torch.autograd.Function; one is accepted.")
        super().__init__(relu_rules(partial(_replace_relu, relu_func)))
        self.relu_func = relu_func
