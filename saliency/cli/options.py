"""What is chosen on the command line: methods, their options, a device."""

import ast
from collections.abc import Iterable, Sequence
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch

from saliency.methods import METHODS
from saliency.networks.models import unknown

# What changes the form of the result; a layer has an argument of its own.
NOT_OFFERED = frozenset({"saliency_layer", "debug", "return_convergence_delta"})
# A whole path in one batch can exceed the memory: 50 steps of a ResNet-50 keep 5 GB for the backward pass.
POINTS_AT_ONCE = 16


def choose_methods(names: Sequence[str]) -> list[str]:
    """Return the names of methods without repetition; ``'all'`` stands for every one."""
    chosen = [method for name in names for method in (METHODS if name == "all" else [name])]
    for name in chosen:
        if name not in METHODS:
            raise unknown("method", name, list(METHODS), "accepted are 'all' and what 'saliency methods' lists")
    return list(dict.fromkeys(chosen))


def choose_device(name: str) -> torch.device:
    """Return the device; ``'auto'`` is CUDA where there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"], "accepted are 'auto', 'cpu' and 'cuda'")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device='cuda' is not available on this machine; accepted are 'auto' and 'cpu'.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def choose_options(methods: Sequence[str], layer: str | None, pairs: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the options of every method: the layer and each NAME=VALUE, for the methods that have such an option.

    >>> choose_options(["rise", "gradient"], None, ["num_masks=500"])
    {'rise': {'num_masks': 500}, 'gradient': {}}
    """
    chosen = {} if layer is None else {"saliency_layer": layer}
    if layer is not None and not any("saliency_layer" in METHODS[name].options for name in methods):
        raise ValueError(f"layer={layer!r} is an option of none of the methods; one of theirs is accepted.")
    for pair in pairs:
        option, _, text = pair.partition("=")
        if not any(option in written_options(name) for name in methods):
            raise ValueError(
                f"option={pair!r} is an option of none of the methods; expected one of theirs that is a number, a "
                "text, a flag or a list of those."
            )
        chosen[option] = read_value(text)
    return {
        name: {
            option: value
            for option, value in chosen.items()
            if option in (METHODS[name].options if option == "saliency_layer" else written_options(name))
        }
        for name in methods
    }


@cache
def written_options(name: str) -> frozenset[str]:
    """The options of a method that NAME=VALUE can give: numbers, texts, flags and lists of them.

    >>> sorted(written_options("grad_cam") - written_options("hires_cam"))
    []
    >>> {"resize", "path"} & written_options("grad_cam")
    {'resize'}
    """
    method = METHODS[name]
    types = get_type_hints(method.engine) | get_type_hints(method.function)
    found = {option for option in method.options - NOT_OFFERED if _is_written(types[option])}
    # The other methods take it along with path=, which cannot be written.
    return frozenset(found if is_path_method(name) else found - {"internal_batch_size"})


def _is_written(hint: object) -> bool:
    """Is a value of this type, or of one of its alternatives, a number, a text, a flag or a list of those?"""
    if get_origin(hint) in (Union, UnionType, tuple, Sequence):
        return any(map(_is_written, get_args(hint)))
    return hint in (bool, int, float, str)


def is_path_method(name: str) -> bool:
    """Whether the method takes gradients on a path of its own.

    >>> is_path_method("conductance"), is_path_method("grad_cam")
    (True, False)
    """
    return "path" in METHODS[name].sets


def read_value(text: str) -> Any:
    """Return the Python literal that a text is, or the text itself.

    >>> read_value("(0.1, 0.2)"), read_value("softmax")
    ((0.1, 0.2), 'softmax')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
