"""What there is to choose from: methods, and the layers of a network."""

from collections.abc import Iterable, Sequence

import torch

from saliency.engine.search import find_layer
from saliency.evaluation.networks.models import layer_shapes, load_network, recipe
from saliency.methods import METHODS


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
