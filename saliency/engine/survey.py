"""Survey: what the graph of a pass says of its operations and of their tensor arguments."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import cast

import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.nn import Parameter

from saliency.engine.graph import node_of, sources, walk
from saliency.engine.kinds import BATCH_NORMS, CONVOLUTIONS, WEIGHTED, parameters_of
from saliency.engine.operations import Operation
from saliency.engine.standing import Origin, Standing

# Names of operations, as autograd has them, in lower case: copies; results that are never negative; results that are
# not if the arguments are not; weights for others (attention, gates, 1 / norm); operations that keep them such.
_SAME = re.compile("alias|clone")
_COPIES = (
    "alias|clone|expand|flip|permute|pixelshuffle|reshapealias|select|slice|split.*|squeeze|t|tocopy|transpose|unbind"
    "|unsafesplit.*|unsafeview|unsqueeze|view|cat|stack"
)
_MOVES = re.compile(_COPIES)
_NONNEGATIVE = re.compile("relu|relu6|sigmoid|hardsigmoid|softmax")
_STAYS_NONNEGATIVE = re.compile(
    f"{_COPIES}|add|mul|mean|sum|(adaptive)?(max|avg)pool.*|upsample(nearest|linear|bilinear|trilinear).*"
)
_GATES = re.compile("sigmoid|hardsigmoid|softmax|rsqrt|reciprocal|linalgvectornorm|norm|std")
_STAYS_GATE = re.compile(f"{_COPIES}|add|mul|div|(adaptive)?(max|avg)pool.*|mean|upsample.*|linear|conv.*|index")


class Survey:
    """Tell every operation in the graph of a score where it stands; ``begun`` says that others with weights ran before.

    It refers to the graph, which no operation may do.
    """

    def __init__(self, score: Tensor, begun: bool) -> None:
        self.root = node_of(score)
        order = list(_sources_first(self.root))
        self._readers = Counter(source for node in order for source in sources(node))
        self._nodes: dict[Operation, Node] = {op: node for node in order if (op := _operation(node)) is not None}
        origins: dict[Node | None, Origin] = {None: Origin(False)}
        for node in order:
            origins[node] = _origin_of(node, [origins[source] for source, _ in node.next_functions])
        found = {op: [origins[source] for source, _ in node.next_functions] for op, node in self._nodes.items()}
        weighted = [op for op in self._nodes if op.function in WEIGHTED and found[op][0].depends]
        weighted.sort(key=lambda op: self._nodes[op]._sequence_nr())
        norms = dict(self._merged())
        for op, own in found.items():
            first = bool(weighted) and op is weighted[0] and not begun
            op.standing = Standing(own, first, bool(weighted) and op is weighted[-1], norms.get(op))

    @property
    def operations(self) -> Iterable[Operation]:
        """The operations that were kept."""
        return self._nodes

    def _merged(self) -> Iterator[tuple[Operation, tuple[Tensor, Tensor]]]:
        """Convolutions, or linear layers of a batch, whose result only a batch norm reads, each with that norm's scale
        and shift.
        """
        for norm in self._nodes:
            if norm.function in BATCH_NORMS and not norm.argument(5, "training", False):
                chain = self._chain(norm)
                op = _operation(chain[-1])
                alone = all(self._readers[node] == 1 for node in chain)
                if op is not None and alone and _has_channels_second(op, norm):
                    yield op, _affine(norm)

    def input_edge(self, op: Operation) -> GradientEdge:
        """The edge that receives the gradient of an operation's first tensor."""
        node, at = self._nodes[op].next_functions[0]
        return GradientEdge(cast(Node, node), at)

    def copied(self, op: Operation) -> set[Node]:
        """The nodes of an operation's first tensor and of what it is a copy of, in parts or in another order."""
        return walk([self.input_edge(op).node], lambda node: sources(node) if _MOVES.fullmatch(_name(node)) else [])

    def in_front(self, op: Operation) -> set[Node]:
        """The nodes that an operation's first tensor was computed from."""
        return walk([self.input_edge(op).node], sources)

    def _chain(self, op: Operation) -> list[Node]:
        """The nodes whose result is an operation's first tensor unchanged; the last of them computed it."""
        nodes = [self.input_edge(op).node]
        while _SAME.fullmatch(_name(nodes[-1])):
            nodes.append(cast(Node, nodes[-1].next_functions[0][0]))
        return nodes


def _sources_first(root: Node | None) -> Iterator[Node]:
    """All nodes that can be reached, each after those that it was computed from."""
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if node is None or (node in seen and not done):
            continue
        if done:
            yield node
            continue
        seen.add(node)
        stack.append((node, True))
        stack.extend((source, False) for source in sources(node))


def _operation(node: Node) -> Operation | None:
    op = getattr(node, "op", None)
    return op if isinstance(op, Operation) else None


def _name(node: Node) -> str:
    op = _operation(node)
    function = getattr(node, "function", None) if op is None else op.function  # for ReLU, which keeps no operation
    name: str = node.name().partition("Backward")[0] if function is None else function.__name__
    return name.partition(".")[0].replace("_", "").lower()


def _origin_of(node: Node, given: list[Origin]) -> Origin:
    """The origin of what a node has computed, given the origins of its inputs."""
    name, variable = _name(node), getattr(node, "variable", None)
    if variable is not None:
        return Origin(not isinstance(variable, Parameter))
    stays = _STAYS_NONNEGATIVE.fullmatch(name) and getattr(node, "_saved_alpha", 1) > 0  # x - y is x + (-1) y
    if (op := _operation(node)) is not None and name in ("add", "mul"):  # it has the number
        stays = stays and len(given) == 2 and op.argument(2, "alpha", 1) == 1
    nonnegative = bool(_NONNEGATIVE.fullmatch(name) or (stays and all(source.nonnegative for source in given)))
    gates = {source.gate for source in given if source.depends} if _STAYS_GATE.fullmatch(name) else set()
    gate = name if _GATES.fullmatch(name) else gates.pop() if len(gates) == 1 else ""
    return Origin(any(source.depends for source in given), nonnegative, gate)


def _has_channels_second(op: Operation, norm: Operation) -> bool:
    """Are the operation's channels on the axis where the norm that reads its result expects them?"""
    if op.function in CONVOLUTIONS:
        return bool(norm.tensors[0].ndim == op.argument(1, "weight").ndim)
    return op.function is F.linear and bool(norm.tensors[0].ndim == 2)


def _affine(norm: Operation) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, by channel."""
    mean, variance, weight, bias = parameters_of(norm)
    scale = (variance + norm.argument(7, "eps", 1e-5)).rsqrt()
    scale = scale if weight is None else scale * weight
    return scale, -mean * scale if bias is None else bias - mean * scale
