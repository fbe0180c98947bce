"""The available choices: methods, and the layers of a network."""

from collections.abc import Iterable, Sequence

import torch

from saliency.engine.search import layer_candidates
from saliency.methods import METHODS
from saliency.networks.models import load_network, preprocessing
from saliency.rules import default_rules


def methods_table(arch: str | None = None) -> str:
    """Return name, purpose and paper of every method; and, of a network, the rules that relevance takes by default."""
    rows = [(name, (method.function.__doc__ or "").split("\n")[0], method.paper) for name, method in METHODS.items()]
    note = "" if arch is None else f"\nlrp of {arch}: rules={default_rules(load_network(arch))!r} where none are given"
    return table(rows) + note


def layers_table(arch: str) -> str:
    """Return name, class, output shape of every layer; which one the CAMs explain by default, or why not this one."""
    model, wanted = load_network(arch), preprocessing(arch)
    for parameter in model.parameters():  # a head starts at zero in some networks, and lets no gradient through
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    image = torch.randn(1, 3, wanted.size, wanted.size, generator=torch.Generator().manual_seed(0))
    found = {candidate.name: candidate for candidate in layer_candidates(model, image)}
    default = [candidate.name for candidate in found.values() if not candidate.problem][-1]
    rows = []
    for name, layer in model.named_modules():
        if name:
            seen = found.get(name)
            shape, problem = ("-", "no single tensor, or not run") if seen is None else (str(seen.shape), seen.problem)
            rows.append(("*" if name == default else " ", name, type(layer).__name__, shape, problem))
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
