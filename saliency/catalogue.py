"""What the command line lets one choose from: methods and their options, layers, devices."""

import ast
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from saliency.engine.search import find_layer
from saliency.evaluation.networks.models import layer_shapes, load_network, recipe, unknown
from saliency.methods import METHODS

# Functions, tensors and what changes the form of the result cannot be written as NAME=VALUE.
NOT_WRITTEN = {
    *("saliency_layer", "context_builder", "gradient_to_saliency", "get_backward_gradient", "debug", "reduction"),
    *("additional_forward_args", "forward_kwargs", "filter_masks", "progress", "print_iter", "reward_func", "shared"),
    *("path", "return_convergence_delta"),
}
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
    if layer is not None and not _any_has(methods, "saliency_layer"):
        raise ValueError(f"layer={layer!r} is an option of none of the methods; one of theirs is accepted.")
    for pair in pairs:
        option, _, text = pair.partition("=")
        if option in NOT_WRITTEN or not _any_has(methods, option):
            raise ValueError(f"option={pair!r} is an option of none of the methods; one of theirs is accepted.")
        chosen[option] = read_value(text)
    return {name: {option: chosen[option] for option in chosen if _has(name, option)} for name in methods}


def _any_has(methods: Sequence[str], option: str) -> bool:
    return any(_has(name, option) for name in methods)


def _has(name: str, option: str) -> bool:
    # The other methods take it along with path=, which cannot be written.
    return option in METHODS[name].options and (option != "internal_batch_size" or is_path_method(name))


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


def methods_table() -> str:
    """Return name, purpose and paper of every method."""
    rows = [(name, (method.function.__doc__ or "").split("\n")[0], method.paper) for name, method in METHODS.items()]
    return table(rows)


def layers_table(arch: str) -> str:
    """Return name, class and output shape of every layer, the default of the CAMs marked with a star."""
    model, wanted = load_network(arch), recipe(arch)
    for parameter in model.parameters():  # a head starts at zero in some networks, and lets no gradient through
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    image = torch.zeros(1, 3, wanted.size, wanted.size)
    default, shapes = find_layer(model, image), layer_shapes(model, image)
    layers = [(name, layer) for name, layer in model.named_modules() if name]
    marks = {default: "*"}
    rows = [(marks.get(name, " "), name, type(layer).__name__, shapes.get(name, "-")) for name, layer in layers]
    return f"{table(rows)}\n* where the CAMs look by default; shapes for an input of {tuple(image.shape)}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return the rows as aligned columns.

    >>> table([("a", "first"), ("long", "second")])
    'a     first\\nlong  second'
    """
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
