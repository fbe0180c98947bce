"""Autograd's graph of a forward pass: what depends on what, and which results are mere copies."""

import re
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

# Operations that select, reorder, convert or resize values without computing new ones.
_COPIES = re.compile(
    r"(Alias|AsStrided|Cat|Clone|ConstantPadNd|Expand|Flip|Index|IndexSelect|Permute|PixelShuffle|ReshapeAlias|Select"
    r"|Slice|Split\w*|Squeeze|Stack|T|ToCopy|Transpose|Unbind|UnsafeView|Unsqueeze|Upsample\w*|View)Backward\d*"
)


T = TypeVar("T", bound=Hashable)


def node_of(x: Tensor) -> Node | None:
    """The graph node that produced a tensor; ``None`` if it does not require a gradient."""
    return get_gradient_edge(x).node if x.requires_grad else None


def sources(node: Node) -> list[Node]:
    """The nodes whose results are the inputs of a node."""
    return [source for source, _ in node.next_functions if source is not None]


def walk(start: Iterable[T], follow: Callable[[T], Iterable[T]]) -> set[T]:
    """Everything that can be reached from ``start``, which is included.

    >>> walk([1], lambda n: [2 * n] if n < 8 else []) == {1, 2, 4, 8}
    True
    """
    found: set[T] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(follow(node))
    return found


def _copied_from(node: Node) -> list[Node]:
    return sources(node) if _COPIES.fullmatch(node.name()) else []


def origins(node: Node) -> set[str]:
    """The names of the operations that computed a node's values, looking through mere copies.

    >>> import torch
    >>> origins(torch.ones(2, requires_grad=True).softmax(0).view(1, 2).grad_fn)
    {'SoftmaxBackward0'}
    """
    return {found.name() for found in walk([node], _copied_from) if not _copied_from(found)}


def depends_on(score: Tensor, x: Tensor) -> bool:
    """Was a score computed from a tensor? Walks the graph, without a backward pass.

    >>> import torch
    >>> x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    >>> depends_on((x * 2).sum(), x), depends_on((x * 2).sum(), y)
    (True, False)
    """
    start = node_of(score)
    return start is not None and node_of(x) in walk([start], sources)


class Graph:
    """What a score was computed from.

    >>> import torch
    >>> x = torch.ones(2, requires_grad=True)
    >>> y = x * 2
    >>> z = y.view(1, 2)
    >>> graph = Graph(z.sum(), [z], given=[node_of(x)])
    >>> graph.depends(node_of(y)), graph.is_returned(node_of(y)), graph.is_returned(node_of(x))
    (True, True, False)
    """

    def __init__(self, score: Tensor, outputs: Iterable[Tensor], given: Iterable[Node]) -> None:
        """``outputs`` are the tensors that the model returned, ``given`` the nodes of its inputs."""
        start = [node for x in [score] if (node := node_of(x)) is not None]
        returned = {node for x in outputs if (node := node_of(x)) is not None}
        self._nodes = walk(start, sources)
        readers: dict[Node, list[Node]] = {node: [] for node in self._nodes}
        for node in self._nodes:
            for source in sources(node):
                readers[source].append(node)
        self._dependent = walk((node for node in given if node in self._nodes), readers.__getitem__)
        # A model may return its hidden states too: only the output that the score is computed from counts.
        read = walk(start, lambda node: [] if node in returned else sources(node)) & returned
        self._returned = walk(read, _copied_from)

    def __contains__(self, node: Node) -> bool:
        """Does the score depend on this node?"""
        return node in self._nodes

    def depends(self, node: Node | None) -> bool:
        """Does the node depend on the model's input? If the score hides its dependence, all nodes are taken to depend
        on it.
        """
        return node in self._dependent or not self._dependent

    def is_returned(self, node: Node) -> bool:
        """Is the output behind the score a mere copy of this node, perhaps resized?"""
        return node in self._returned
