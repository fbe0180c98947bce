"""A method as the evaluation calls it: any function of a model, an input and a target, with its options."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from inspect import Parameter, signature
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from saliency.engine.checks import check_type, describe, name_of, shown
from saliency.engine.layers import Layer, resolve_layer
from saliency.engine.maps import check_map_options, finish_map
from saliency.engine.state import own_copy

DECIDED = ("resize", "debug")  # options that the runner sets, or cannot use
FINISHING = ("smooth", "resize_mode", "shared")  # options that it takes for itself
EXPECTED = "a function f(model, input, target), alone or as (f, options) or Explainer; several in a list or by name"

Options: TypeAlias = Mapping[str, Any]
Function: TypeAlias = Callable[..., Any]
Found = TypeVar("Found")

# After it every call on the device fails, until the process ends. Old releases of torch do not tell it from others.
FATAL: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()


def attempt(compute: Callable[[], Found]) -> Found | Exception:
    """The result, or the error without its tensors. An error after which the device is unusable is raised."""
    try:
        return compute()
    except FATAL:
        raise
    except Exception as error:
        return error.with_traceback(None)


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Draw global random numbers from a seed, for methods and measures without one of their own; then as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(eq=False)
class Explainer:
    """A method with its options; ``smooth`` and ``resize_mode`` are applied when a map gets its size.

    ``function(model, input, target)`` is asked for all K classes of N images at once: targets (N, K), maps
    (N, K, h, w). A function that does not return as many maps for two classes or more is asked for one class at a time:
    targets (N,), maps (N, 1, h, w). If the first images have one class only, it is asked for that class twice, of one
    image, to find out. ``shared=True`` says that the method takes a :func:`saliency.shared_forward`. ``version`` stands
    for all that the function does, and those in its options: without one, a later process reuses no result of what is
    not installed.
    """

    function: Function
    options: Options = field(default_factory=dict)
    version: str | None = None
    _one_by_one: bool | None = field(default=None, init=False, repr=False)  # None: it has not made maps yet

    @property
    def passed(self) -> dict[str, Any]:
        """The options that the function is called with."""
        return {name: value for name, value in self.options.items() if name not in FINISHING}

    @property
    def layers(self) -> list[Layer]:
        """The layer that the method explains, if it is given."""
        default = self._parameters.get("saliency_layer")
        layer = self.options.get("saliency_layer", "" if default is None else default.default)
        return [layer] if layer is None or isinstance(layer, (str, Module)) else []

    @property
    def draws(self) -> bool:
        """Whether its map is of any size that is asked for, and shows nothing of the image."""
        return "map_size" in self._parameters

    @property
    def _parameters(self) -> Mapping[str, Parameter]:
        with suppress(TypeError, ValueError):  # a builtin has none to show
            return signature(self.function).parameters
        return {}

    def check(self, name: str, model: Module) -> None:
        """Raise ``ValueError`` for an option that the runner sets or the function lacks, and for a missing layer."""
        check_map_options(False, self.options.get("resize_mode", "bilinear"), self.options.get("smooth", 0), None)
        for option, value in self.options.items():
            if option in DECIDED:
                raise ValueError(f"options={option!r} of {name} is set by the benchmark; expected another option.")
            if option.endswith("_layer") and isinstance(value, str):
                resolve_layer(model, value, option)
        if self._parameters:
            try:
                signature(self.function).bind(model, None, None, **self.passed)
            except TypeError as error:
                raise ValueError(
                    f"methods={name!r} cannot be called with model, input, target and {[*self.passed]} ({error}); "
                    "expected a function of these."
                ) from None

    def maps(self, model: Module, input: Tensor, targets: Tensor, seed: int = 0, /, **options: object) -> Tensor:
        """Maps (N, K, h, w) of the targets (N, K). ``ValueError`` for another result; its own errors pass through.

        Global random numbers are drawn from the ``seed``, for every call of the function anew.
        """
        ask = partial(self._ask, model, input, seed=seed, options=options)
        if self._one_by_one is None and targets.shape[1] == 1:
            own = {name: value for name, value in options.items() if name != "shared"}
            self.maps(model, input[:1], targets[:1].expand(1, 2), seed, **own)
        if not self._one_by_one:
            found = attempt(partial(ask, targets))
            if not isinstance(found, Exception):
                self._one_by_one = False
                return found
            # To be out of memory says nothing about what the function takes.
            if self._one_by_one is False or isinstance(found, torch.OutOfMemoryError):
                raise found
        maps = torch.cat([ask(column) for column in targets.unbind(1)], 1)
        if self._one_by_one is None:
            said = "%s makes no maps (N, K, h, w) of targets (N, K): it is asked for one class at a time, targets (N,)"
            logging.getLogger(__name__).warning(said, name_of(self.function))
        self._one_by_one = True
        return maps

    def _ask(self, model: Module, input: Tensor, target: Tensor, seed: int, options: dict[str, object]) -> Tensor:
        """The maps of a target (N, K) or (N,). In-place changes by the function are not visible outside."""
        own = input if "shared" in options else own_copy(input)
        with drawing_from(seed, input.device):
            maps = self.function(model, own, own_copy(target), **self.passed, **options)
        shape = (*target.shape, 1)[:2]
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != shape:
            raise ValueError(
                f"maps={describe(maps)} do not fit target={describe(target)}; "
                f"expected a tensor of shape {(*shape, 'h', 'w')}."
            )
        return maps.detach()

    def finish(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps (N, K, h, w) at ``size`` = (height, width), smoothed there: sigma is a fraction of its longer side."""
        mode, smooth = self.options.get("resize_mode", "bilinear"), self.options.get("smooth", 0)
        finished = finish_map(maps, maps, size[::-1], mode, smooth)
        # Interpolated, a constant has maxima, which are rounding errors.
        constant = maps.amax((2, 3), keepdim=True) == maps.amin((2, 3), keepdim=True)
        return torch.where(constant, maps[..., :1, :1], finished)


Given: TypeAlias = Explainer | Function | tuple[Function, Options]
Methods: TypeAlias = Mapping[str, Given]


def named_methods(methods: Methods | Given | list[Given]) -> dict[str, Explainer]:
    """The methods by their names; a function given without a name goes by its own.

    ``ValueError`` for anything that is not a method, and where two have the same name, or one with a ``|``.

    >>> list(named_methods([torch.relu, partial(torch.mean, dim=1)])), list(named_methods({"mine": torch.relu}))
    (['relu', 'mean'], ['mine'])
    """
    alone = callable(methods) or isinstance(methods, (Explainer, tuple))
    if not alone and not isinstance(methods, (Mapping, list)):
        raise ValueError(f"methods={shown(methods)} is not a method; expected {EXPECTED}.")
    if isinstance(methods, Mapping):
        return {_checked_name(name): _explainer(given) for name, given in methods.items()}
    found: dict[str, Explainer] = {}
    for given in methods if isinstance(methods, list) else [methods]:
        explainer = _explainer(given)
        name = name_of(explainer.function)
        if name in found:
            raise ValueError(f"methods={name!r} is the name of two of them; expected a dict of methods by names.")
        found[name] = explainer
    return found


def _explainer(given: object) -> Explainer:
    """The method with its options, checked."""
    function, options = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
    version = None
    if isinstance(given, Explainer):
        function, options, version = given.function, given.options, given.version
    if not callable(function):
        raise ValueError(f"methods={shown(given)} is not a method; expected {EXPECTED}.")
    check_type("options", options, Mapping, "a method's options by their names")
    check_type("version", version, (str, type(None)), "a text or None")
    return given if isinstance(given, Explainer) else Explainer(function, options)


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name or "|" in name:
        raise ValueError(f"methods={shown(name)} is not a name; expected a text without '|', which joins two names.")
    return name
