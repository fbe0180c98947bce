"""The request: which methods, at which layers, with which options."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature, unwrap
from typing import Any, NamedTuple, TypeAlias

from torch.nn import Module

from saliency.engine.checks import check_type, instead_of, name_of, shown
from saliency.engine.layers import Layer, plain_name, resolve_layer
from saliency.methods import METHODS, Method
from saliency.networks.names import unknown

# A whole path in one batch can exceed the memory: 50 steps of a ResNet-50 keep 5 GB for the backward pass.
POINTS_AT_ONCE = 16
# Arguments of explain() itself, which a misspelt option may stand for.
ARGUMENTS = ("target", "methods", "saliency_layer", "preprocessing", "mean", "std", "size", "classes", "crop")

Function: TypeAlias = Callable[..., Any]  # a method, or one that a wrapper made
Methods: TypeAlias = str | Sequence[str | Function] | Mapping[str, Function]
LayersOf: TypeAlias = Layer | Sequence[Layer] | Mapping[str, Layer | Sequence[Layer]]


class Asked(NamedTuple):
    """One column of an explanation: a method at a layer, None where the method chooses, with its options."""

    name: str
    method: str
    function: Function
    layer: Layer
    options: Mapping[str, object]

    @property
    def row(self) -> Method | None:
        """The row of the table of methods that it is, possibly wrapped."""
        return row_of(self.function)

    @property
    def shares(self) -> bool:
        """Can it be given a forward pass that other methods use too?"""
        row = METHODS.get(self.method)
        return row is not None and self.function is row.function and "shared" in row.options and "path" not in row.sets

    @property
    def default_layer(self) -> Layer:
        """The layer by default: ``''`` is the input, None means that it is searched."""
        parameter = signature(self.function).parameters.get("saliency_layer")
        return "" if parameter is None or parameter.default is parameter.empty else parameter.default

    @property
    def searches(self) -> bool:
        """Does it explain the layer that is found for it?"""
        attends = self.row is not None and self.row.needs_attention
        return self.layer is None and self.default_layer is None and not attends


def row_of(function: Function) -> Method | None:
    """The row of the table of methods that a function is, possibly wrapped; None for a user's own function."""
    inner = unwrap(function)
    return next((row for row in METHODS.values() if row.function is inner), None)


def named_methods(methods: Methods) -> dict[str, Function]:
    """The methods by name, from names, functions, a mapping of both, or ``'all'``.

    >>> list(named_methods(["grad_cam", METHODS["gradient"].function]))
    ['grad_cam', 'gradient']
    """
    if isinstance(methods, Mapping):
        found: dict[str, Function] = dict(methods)
    else:
        listed = [methods] if isinstance(methods, str) or callable(methods) else methods
        check_type("methods", listed, Sequence, "names of methods or functions, in a list, or a dict of functions")
        found = {}
        for name, function in (pair for method in listed for pair in _named(method)):
            if found.setdefault(name, function) is not function:
                raise ValueError(f"methods={name!r} is the name of two of them; expected a dict of methods by names.")
    for name, function in found.items():
        if not isinstance(name, str) or not callable(function) or isinstance(function, (type, Module)):
            raise ValueError(f"methods={shown({name: function})} is not a method; expected functions such as grad_cam.")
    if not found:
        raise ValueError(f"methods={shown(methods)} is empty; expected one or more methods.")
    return found


def _named(method: object) -> Iterator[tuple[str, Function]]:
    if callable(method):
        yield next((name for name, row in METHODS.items() if row.function is method), name_of(method)), method
    elif method == "all":
        yield from ((name, row.function) for name, row in METHODS.items())
    elif isinstance(method, str) and method in METHODS:
        yield method, METHODS[method].function
    else:
        expected = "'all', a name in saliency.METHODS, or a function"
        check_type("methods", method, str, expected)
        raise unknown("methods", str(method), list(METHODS), f"expected {expected}")


def choose(methods: Methods, layers: LayersOf, options: Mapping[str, object]) -> list[Asked]:
    """The columns of an explanation: every method at every layer that is asked of it, with the options that it has.

    Raises ``ValueError`` for unknown methods, and for layers and options that no method has.
    """
    functions = named_methods(methods)
    taken = {name: _options_of(function) for name, function in functions.items()}
    for option, value in options.items():
        if not any(names is None or option in names for names in taken.values()):
            every = sorted(set(ARGUMENTS).union(*(names or () for names in taken.values())))
            end = instead_of(option, every, "one of theirs")
            raise ValueError(f"{option}={shown(value)} is an option of none of the methods{end}")
    return [
        Asked(
            f"{name} {layer_name(layer) or 'input'}" if len(own) > 1 else name,
            name,
            function,
            layer,
            {option: value for option, value in options.items() if (names := taken[name]) is None or option in names},
        )
        for name, function in functions.items()
        for own in [_layers_of(name, layers, taken)]
        for layer in own
    ]


def _options_of(function: Function) -> frozenset[str] | None:
    """The options of a method; None for a user's own function, which is passed all options."""
    row = row_of(function)
    return None if row is None else row.options


def _layers_of(name: str, layers: LayersOf, taken: Mapping[str, frozenset[str] | None]) -> Sequence[Layer]:
    """The layers for a method to explain; None is its own choice."""
    takers = [method for method, names in taken.items() if names is None or "saliency_layer" in names]
    if isinstance(layers, Mapping):
        for method in layers:
            if method not in taken:
                raise unknown("saliency_layer", str(method), list(taken), "expected layers by the names of the methods")
        layers = {**layers}.get(name)
    elif layers is not None and not takers:
        raise ValueError(f"saliency_layer={shown(layers)} is an option of none of the methods; expected None.")
    listed: Sequence[Layer] = layers if isinstance(layers, (list, tuple)) else [layers]  # type: ignore[list-item]
    own = list(dict.fromkeys(listed))
    if not own:
        raise ValueError(f"saliency_layer={shown(layers)} does not name a layer; expected a layer or a list of layers.")
    return own if name in takers else [None]


def by_name(model: Module, layers: LayersOf) -> Mapping[str, Layer | Sequence[Layer]] | Layer | Sequence[Layer]:
    """The layers with the modules of the model among them by their names; others stay, to be refused."""
    names: dict[object, str] = {module: plain_name(path) for path, module in model.named_modules()}
    if isinstance(layers, Mapping):
        return {name: by_name(model, own) for name, own in layers.items()}  # type: ignore[misc]
    if isinstance(layers, (list, tuple)):
        return [names.get(layer, layer) if isinstance(layer, Module) else layer for layer in layers]
    return names.get(layers, layers) if isinstance(layers, Module) else layers


def layer_name(layer: Layer) -> str | None:
    """The name of a layer in an explanation."""
    return type(layer).__name__ if isinstance(layer, Module) else layer


def check_layers(model: Module, asked: Sequence[Asked], argument: str = "saliency_layer") -> None:
    """Raise ``ValueError`` for a layer that the network lacks."""
    for layer in (column.layer for column in asked):
        if layer is not None and layer != "":
            resolve_layer(model, layer, argument)
