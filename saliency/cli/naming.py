"""Methods by their names: those of the table, ``module:function`` of the user's own, and ``wrapper(method)``."""

import re
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial, update_wrapper
from inspect import Parameter, signature
from types import UnionType
from typing import NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints

from torch.nn import Module

from saliency.engine.call import Input
from saliency.engine.signatures import Maps
from saliency.engine.targets import Target
from saliency.methods import METHODS
from saliency.networks.names import unknown
from saliency.networks.own import find_function
from saliency.wrappers import augmented, low_pass, normalised, smooth_grad

Function: TypeAlias = Callable[..., Maps]

WRAPPERS: dict[str, Callable[..., Function]] = {
    "smooth_grad": smooth_grad,
    "augmented": augmented,
    "low_pass": low_pass,
    "normalised": normalised,
}
# What changes the form of the result; a layer has an argument of its own.
NOT_OFFERED = frozenset({"saliency_layer", "debug", "return_convergence_delta"})
# What belongs to one call, where a wrapper makes several, or is refused by it.
NOT_WRAPPED = frozenset({"shared", "progress", "debug", "return_convergence_delta"})


class Named(NamedTuple):
    """A method: ``options`` can be passed by name, and ``written`` of them as NAME=VALUE on a command line.

    ``row`` is the name in METHODS of the method, or of the one that is wrapped; '' for a function of the user's.
    """

    function: Function
    options: frozenset[str]
    written: frozenset[str]
    row: str = ""

    @property
    def is_path(self) -> bool:
        """Whether the method takes gradients on a path of its own.

        >>> find_method("conductance").is_path, find_method("grad_cam").is_path
        (True, False)
        """
        return bool(self.row) and "path" in METHODS[self.row].sets


def find_method(name: str, others: Collection[str] = ()) -> Named:
    """Return the method that a name stands for; wrappers may be nested.

    Raises ``ValueError`` for an unknown name, with the nearest of METHODS and ``others``, for what cannot be imported,
    and for a function that cannot be called as ``function(model, input, target)``.

    >>> find_method("smooth_grad(gradient)").row
    'gradient'
    >>> {"resize", "path"} & find_method("grad_cam").written
    {'resize'}
    """
    if expression := re.fullmatch(r"([^(]*)\((.*)\)", name):
        wrapper, inner = expression.groups()
        if wrapper not in WRAPPERS:
            known = [f"{one}({inner})" for one in WRAPPERS]
            raise unknown("method", name, known, f"expected one of {', '.join(WRAPPERS)}")
        return _wrapped(WRAPPERS[wrapper], find_method(inner))
    if ":" in name:
        function = find_function("method", name, "my_module:method", "a function of (model, input, target)")
        return _own(name, function)
    if name not in METHODS:
        expected = "expected 'all', a name that 'saliency methods' lists, module:function or wrapper(method)"
        raise unknown("method", name, [*METHODS, *others], expected)
    return Named(METHODS[name].function, METHODS[name].options, _written_options(name), name)


def _own(name: str, function: Function) -> Named:
    """A function of the user's, whose options are its parameters behind the target."""
    parameters = signature(function).parameters
    try:
        signature(function).bind_partial(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"method={name!r} is a function of ({', '.join(parameters)}); expected one of (model, input, target)."
        ) from error
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    names = [option for option, parameter in parameters.items() if parameter.kind in by_name]
    options = frozenset(names[3:])
    return Named(function, options, options - NOT_OFFERED)


def _wrapped(wrapper: Callable[..., Function], method: Named) -> Named:
    """A wrapped method, which takes the wrapper's options beside its own.

    A partial function of named functions, both of which a result's fingerprint includes; a closure could be anything.
    """
    hints = get_type_hints(wrapper)
    own = frozenset(name for name in [*signature(wrapper).parameters][1:] if _is_written(hints[name]))
    options, written = (names - NOT_WRAPPED | own for names in (method.options, method.written))
    function = update_wrapper(partial(call_wrapped, wrapper, method.function), method.function)
    return Named(function, options, written, method.row)


def call_wrapped(
    wrapper: Callable[..., Function], method: Function, model: Module, input: Input, target: Target, **options: object
) -> Maps:
    """Call a wrapped method; the wrapper is given the options that it has.

    >>> import torch
    >>> ones = lambda model, input, target: input * 0 + 1
    >>> call_wrapped(normalised, ones, torch.nn.Identity(), torch.rand(1, 1, 1, 2), 0, by="sum")
    tensor([[[[0.5000, 0.5000]]]])
    """
    parameters = {name: one for name, one in signature(wrapper).parameters.items() if name != "method"}
    own = {name: options.pop(name) for name in parameters if name in options}
    for name, parameter in parameters.items():
        if name not in own and parameter.default is Parameter.empty:
            raise ValueError(f"option={name!r} of {wrapper.__name__} is missing; expected NAME=VALUE.")
    return wrapper(method, **own)(model, input, target, **options)


@cache
def _written_options(name: str) -> frozenset[str]:
    """The options of a method of the table that are numbers, texts, flags, and lists of them."""
    method = METHODS[name]
    types = get_type_hints(method.engine) | get_type_hints(method.function)
    found = {option for option in method.options - NOT_OFFERED if _is_written(types.get(option))}
    # The other methods take it along with path=, which cannot be written.
    return frozenset(found if "path" in method.sets else found - {"internal_batch_size"})


def _is_written(hint: object) -> bool:
    """Is a value of this type, or of one of its alternatives, a number, a text, a flag or a list of those?"""
    if get_origin(hint) in (Union, UnionType, tuple, Sequence):
        return any(map(_is_written, get_args(hint)))
    return hint in (bool, int, float, str)
