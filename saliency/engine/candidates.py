"""Candidates: which layers of a forward pass return a map, and where these are in the graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import Identity, Linear, Module
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd
from torch.utils._pytree import tree_leaves

from saliency.engine.graph import node_of
from saliency.engine.layouts import FEW_TOKENS, Reading, read, same_aspect
from saliency.engine.watching import Grid, Watching

NO_GRID = "no grid"


@dataclass
class Output:
    """The single tensor that a module returned, where it is in the graph, and why it is not a map, if it is not."""

    name: str
    module: Module
    shape: tuple[int, ...]
    problem: str
    edge: GradientEdge | None = None
    stream: tuple[Node | None, ...] = ()  # the node of the module's own input tokens, where known
    seen: tuple[Grid, ...] = ()  # the grids that the pass had shown so far
    same: "Output | None" = None  # what it was given, and passes on
    turned: bool = False  # does it return tokens (L, N, C)? The shape is (N, L, C)

    def __str__(self) -> str:
        return f"{self.name} {self.shape}: {self.problem}"


class _Shapes:
    """Decide which shapes are those of a map, given the grids and tokens that the pass has shown so far."""

    def __init__(self, samples: int, size: tuple[int, ...]) -> None:
        self._samples, self._size = samples, size
        self._tokens: set[int] = set()

    def problem(self, x: Tensor, module: Module, seen: Sequence[Grid]) -> str:
        """The reason why a tensor is not a map; empty if its shape is that of one."""
        if isinstance(module, (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)):
            return "an adaptive pool"
        if x.ndim < 3 or len(x) != self._samples or x.is_inference():
            return NO_GRID
        try:
            reading = read(x.shape, self._size, module, seen)
        except ValueError:
            return "an ambiguous layout"
        if reading is None or prod(reading.sides) < 2 or self._exceeds(reading.sides, seen):
            return NO_GRID
        if len(reading.sides) == 1 < len(self._size):
            return "one axis, for an input with more"
        if x.ndim == 3 and (len(reading.sides) > 1 or reading.channels == "last"):
            return self._of_tokens(x, reading, module)
        return self._of_cells(reading.sides, seen)

    def _exceeds(self, sides: tuple[int, ...], seen: Sequence[Grid]) -> bool:
        """Is the grid far larger than the image, without the model having upsampled to it?"""
        known = len(sides) != len(self._size) or any(grid.sides == sides for grid in seen)
        return not known and any(side > 2 * of for side, of in zip(sides, self._size, strict=True))

    def _of_tokens(self, x: Tensor, reading: Reading, module: Module) -> str:
        tokens, features = x.shape[1:]
        if features == 1:
            return "one number per channel, or per token"
        if reading.channels == "first":
            return "the channels of a flattened grid"
        self._tokens.add(tokens)
        adapted = getattr(module, "base_layer", module)  # what a low-rank adapter stands beside
        return "a projection" if isinstance(adapted, Linear) else ""

    def _of_cells(self, grid: Sequence[int], seen: Sequence[Grid]) -> str:
        if self._tokens and (min(grid) == 1 or any(side in self._tokens for side in grid)):
            return "attention between tokens"
        if len(grid) == 2 and not same_aspect(grid, self._size):
            flat = [side - prod(of.sides) for side in grid for of in seen if len(of.sides) == 2]
            if any(0 <= extra <= FEW_TOKENS for extra in flat):
                return "a flattened grid"
        return ""


class Watch:
    """Hooks that note what every module returns while the model runs."""

    def __init__(self, samples: int, size: tuple[int, ...]) -> None:
        self.outputs: dict[str, Output] = {}
        self.given: set[Node] = set()
        self.grids = Watching()
        self._shapes = _Shapes(samples, size)

    def give(self, tensor: Tensor) -> Tensor:
        """Prepare an input tensor for the model: one that it may overwrite, and whose node marks what depends on the
        input.
        """
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.requires_grad_().clone()
        self.given.add(get_gradient_edge(tensor).node)
        return tensor

    def hook(self, name: str) -> Callable[..., Tensor | None]:
        def note(module: Module, args: object, kwargs: object, output: object) -> Tensor | None:
            if not (isinstance(output, Tensor) and output.is_floating_point()):
                return None
            with torch._C.DisableTorchFunction():  # the search is not part of the model
                return self._note(name, module, (args, kwargs), output)

        return note

    def _note(self, name: str, module: Module, given: object, x: Tensor) -> Tensor | None:
        self.outputs.pop(name, None)  # of several calls the last one counts, in its order
        first = self.grids.batch_first(x)
        seen = self.grids.of(first)
        taken = next((leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)), None)
        problem = self._shapes.problem(first, module, seen)
        found = self.outputs[name] = Output(name, module, tuple(first.shape), problem, turned=first is not x)
        if found.problem:
            return None
        found.seen = tuple(seen)
        if x is taken and x.requires_grad and isinstance(module, (Identity, _DropoutNd)):
            found.same = self._known(get_gradient_edge(x))
        enabled = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # a model may switch gradients off around a layer that has one all the same
        kept = x if x.requires_grad else x.detach().requires_grad_()
        found.edge = get_gradient_edge(kept)
        if not (enabled or x.requires_grad):
            self.given.add(found.edge.node)
        if enabled and x.ndim == 3 and taken is not None and taken.shape[:2] == x.shape[:2]:
            found.stream = (node_of(taken),)
        # An in-place operation rewrites the graph of a view.
        return kept.clone() if kept is not x or x._is_view() else None

    def _known(self, edge: GradientEdge) -> Output | None:
        """What another module has returned, at the same place in the graph."""
        return next((found for found in self.outputs.values() if found.edge == edge), None)
