"""The tail: what a network makes of many activations of a layer, for one input whose front runs once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from saliency.engine.call import Call
from saliency.engine.contexts import NullContext, RuleContext
from saliency.engine.layouts import Layout, to_channels_first
from saliency.engine.probe import add_hook
from saliency.engine.record import recording
from saliency.engine.site import Site
from saliency.engine.targets import main_output

# evaluate(tensors, images): which rows, and the model's output for them, until all rows have had their turn
Evaluate: TypeAlias = Callable[[Tensor, Tensor], Iterator[tuple[Tensor, Any]]]


class Tail:
    """Evaluate a model with a layer's tensor replaced by S others, for one input.

    ``activation`` is the layer's own tensor, (1, ...); a call takes (S, ...) and gives the model's output for S rows,
    with gradients from there to the activations. The front runs on a batch of one and records nothing; what it hands
    to the tail directly broadcasts. A network where that fails, or comes to something else, is run on S copies of the
    input instead; it is tried beforehand, on two rows. Of a layer used several times, the last call counts. Use it
    inside ``evaluating(model)``. ``record_all`` is for models that set the gradient mode themselves.
    """

    def __init__(self, site: Site, call: Call, record_all: bool = False, context_builder: Any = NullContext) -> None:
        self.site = site
        self.call = call
        self.record_all = record_all
        self._calls = 0
        with ExitStack() as stack:
            stack.callback(self._hook(self._count).remove)
            stack.enter_context(torch.no_grad())
            recorded = stack.enter_context(recording(call, [site], NullContext, grad=False)).tensors
            self.activation = recorded[0][0].detach()
        if len(self.activation) != 1:
            raise ValueError(
                f"saliency_layer={site.name!r} makes {tuple(self.activation.shape)}, no batch of 1 image; "
                "a layer with one row an image is accepted."
            )
        self.expands = not self._broadcasts()

    def __call__(self, activations: Tensor) -> Any:
        if self.expands or len(activations) == 1:
            return self._expanded(activations)
        return _with_rows(self._run(activations, self.call, BROADCASTING), len(activations))

    def _expanded(self, activations: Tensor) -> Any:
        index = torch.zeros(len(activations), dtype=torch.long, device="cpu")
        return self._run(activations, self.call.rows(index), {})

    @torch.enable_grad()  # as in a search: in place, there is less that may be done
    def _broadcasts(self) -> bool:
        """Does the front, run once, come to the same as copies of it? Tried on two rows that differ."""
        rows = torch.cat([self.activation / 2, self.activation]).requires_grad_()
        expected = _tensors(self._expanded(rows))
        try:
            found = _tensors(_with_rows(self._run(rows, self.call, BROADCASTING), 2))
        except Exception:  # whatever the reason: the network is not made for a front of one row
            return False
        return all(map(_close, found, expected))

    def _run(self, activations: Tensor, call: Call, rules: dict[Callable[..., Any], Any]) -> Any:
        grad, left = torch.is_grad_enabled(), self._calls

        def replace(values: Any) -> Any:
            nonlocal left
            left -= 1
            if left:
                return values
            torch.set_grad_enabled(grad)
            return _replace_first(values, activations.clone())

        with ExitStack() as stack:
            stack.callback(self._hook(replace).remove)
            stack.enter_context(torch.set_grad_enabled(grad and self.record_all))
            stack.enter_context(RuleContext(rules))
            return call.rows(torch.arange(call.samples)).run()

    def _count(self, values: Any) -> None:
        self._calls += 1

    def _hook(self, function: Callable[[Any], Any]) -> Any:
        """Hand what goes into the layer, or comes out of it, through a function."""
        module = self.site.module
        if self.site.side == "output":
            return add_hook(module.register_forward_hook, lambda module, args, output: function(output))
        before = module.register_forward_pre_hook
        return add_hook(before, lambda module, args, kwargs: function((args, kwargs)), with_kwargs=True)


def _tensors(output: Any) -> list[Tensor]:
    leaves = tree_leaves(main_output(output))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _close(found: Tensor, expected: Tensor) -> bool:
    """Are they equal but for rounding, in any precision?"""
    scale = float(expected.detach().abs().max()) if expected.numel() else 0
    same = found.shape == expected.shape
    return same and torch.allclose(found.float(), expected.float(), rtol=0, atol=0.02 * scale, equal_nan=True)


def _replace_first(values: Any, activations: Tensor) -> Any:
    """The same structure with other activations in place of its first floating-point tensor."""
    leaves, structure = tree_flatten(values)
    at = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return tree_unflatten([*leaves[:at], activations, *leaves[at + 1 :]], structure)


def _with_rows(output: Any, samples: int) -> Any:
    """The output, if it has that many rows; what depends on the front alone is the same in every row."""
    scores = [leaf for leaf in tree_leaves(main_output(output)) if isinstance(leaf, Tensor) and leaf.ndim]
    if not scores or any(len(leaf) != samples for leaf in scores):
        raise RuntimeError

    def expand(tensor: Tensor) -> Tensor:
        return tensor.expand(samples, *tensor.shape[1:]) if tensor.ndim and len(tensor) == 1 else tensor

    return tree_map_only(Tensor, expand, output)


def _expanded(tensors: Sequence[Any]) -> list[Any]:
    """Tensors of one row repeat it as often as the others have rows."""
    samples = max((len(tensor) for tensor in tensors if isinstance(tensor, Tensor) and tensor.ndim), default=1)
    return [tensor.expand(samples, *tensor.shape[1:]) if len(tensor) == 1 else tensor for tensor in tensors]


def _join(function: Callable[..., Any], tensors: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
    """``cat`` and ``stack``."""
    several = isinstance(tensors, (list, tuple)) and all(isinstance(x, Tensor) and x.ndim for x in tensors)
    return function(_expanded(tensors) if several else tensors, *args, **kwargs)


def _in_place(function: Callable[..., Any], x: Tensor, other: Any, **kwargs: Any) -> Any:
    """``x += y`` and ``x.add_(y)``: x, of one row and without a gradient, becomes as many rows as y has."""
    rows = isinstance(other, Tensor) and other.ndim == x.ndim > 0 and len(x) == 1 < len(other)
    if rows and not x.requires_grad:
        x.data = x.expand(len(other), *x.shape[1:]).clone()
    return function(x, other, **kwargs)


BROADCASTING: dict[Callable[..., Any], Any] = {
    **dict.fromkeys([torch.cat, torch.concat, torch.concatenate, torch.stack], _join),
    **dict.fromkeys([Tensor.add_, Tensor.__iadd__, Tensor.mul_, Tensor.__imul__], _in_place),
}


def grid_index(x: Tensor, size: Sequence[int], layout: Layout, module: Module | None) -> Tensor:
    """Which entries of a layer's activation (1, ...) stand where in (C, h, w): a LongTensor of flat positions.

    Raises ``ValueError`` where the activation has no grid, or a function as ``layout`` does not only rearrange it.
    """
    numbers = torch.arange(x.numel(), device=x.device).view(x.shape)
    index = to_channels_first(numbers, size, layout, module)
    if not isinstance(index, Tensor) or index.ndim != 4 or len(index) != 1:
        raise ValueError(
            f"layout={layout!r} makes no grid (1, C, h, w) of an activation {tuple(x.shape)}; a layout that does is "
            "accepted."
        )
    if index.is_floating_point() or index.unique().numel() < index.numel() or int(index.max()) >= x.numel():
        raise ValueError(f"layout={layout!r} computes with an activation; a function that rearranges it is accepted.")
    return index[0]


def put_grid(x: Tensor, index: Tensor, grids: Tensor) -> Tensor:
    """Activations (S, ...) that are x (1, ...) but for the entries of ``index``, which hold the grids (S, C, h, w)."""
    rows = index.flatten().expand(len(grids), -1)
    flat = x.flatten(1).expand(len(grids), -1)
    return flat.scatter(1, rows, grids.flatten(1)).view(-1, *x.shape[1:])


def replacing_input(call: Call, at: int) -> tuple[Tensor, Evaluate]:
    """One of the inputs, and how to evaluate the model on B others (B, ...) in its place.

    ``images`` is the row of ``call``, a LongTensor (B,), that each of them belongs to.
    """

    def evaluate(tensors: Tensor, images: Tensor) -> Iterator[tuple[Tensor, Any]]:
        yield torch.arange(len(images), device="cpu"), call.replacing({at: tensors}, images).run()

    return call.inputs[at].detach(), evaluate


def replacing_layer(
    call: Call, site: Site, size: Sequence[int], layout: Layout, record_all: bool = False
) -> tuple[Tensor, Evaluate]:
    """A layer's activations as grids (N, C, h, w), and how to evaluate the model on B others in their place.

    As :func:`replacing_input`; images of ``size`` go one after the other, each with its :class:`Tail`.
    """
    rows = torch.arange(call.samples, device="cpu").split(1)
    tails = [Tail(site, call.rows(row), record_all) for row in rows]
    index = grid_index(tails[0].activation, size, layout, site.module)
    same = index.shape == tails[0].activation.shape[1:] and bool((index.flatten().diff() == 1).all())
    x = torch.cat([tail.activation.flatten()[index][None] for tail in tails])

    def evaluate(tensors: Tensor, images: Tensor) -> Iterator[tuple[Tensor, Any]]:
        for i, tail in enumerate(tails):
            where = (images == i).nonzero().flatten()
            if len(where):
                grids = tensors[where.to(tensors.device)]
                yield where, tail(grids if same else put_grid(tail.activation, index, grids))

    return x, evaluate
