"""Streams: which attentions a score is computed from, and which of them feed which."""

from collections.abc import Iterable, Sequence

from torch.autograd.graph import Node

from saliency.engine.attention import Attention
from saliency.engine.graph import sources, walk


class Streams:
    """For each attention of a pass, what its queries and keys, and its values, are computed from: sets of numbers.

    The numbers are those of the attentions that lead there directly, not through another one, and ``image`` if the
    image does. In a ViT, skip connections bypass every attention, so attention 2 has {0, 1, image}; without them it has
    {1}.
    """

    def __init__(self, found: Sequence[Attention], given: Iterable[Node]) -> None:
        self.image = len(found)
        self._begins = dict.fromkeys(given, 1 << self.image)
        self._begins |= {of.output.node: 1 << at for at, of in enumerate(found) if of.output is not None}
        self._known = dict(self._begins)
        self.reads = [self._leading_to(of.reads) for of in found]
        self.values = [self._leading_to([of.values]) for of in found]

    def _leading_to(self, nodes: Iterable[Node | None]) -> frozenset[int]:
        bits = 0
        for node in nodes:
            bits |= 0 if node is None else self._bits(node)
        return frozenset(at for at in range(self.image + 1) if bits >> at & 1)

    def _bits(self, start: Node) -> int:
        """Collect the numbers as bits. The graph is walked once in total: the result of each node is remembered."""
        stack, known = [start], self._known
        while stack:
            node = stack[-1]
            missing = [] if node in known else [source for source in sources(node) if source not in known]
            stack += missing
            if not missing:
                stack.pop()
            if not missing and node not in known:
                known[node] = 0
                for source in sources(node):
                    known[node] |= known[source]
        return known[start]

    def of(self, scores: Iterable[Node]) -> list[int]:
        """The numbers of all attentions behind the scores that look at the image, or feed one that does.

        Others, such as those over the text of a prompt, are left out.
        """
        behind = self._closed(self._leading_to(scores))
        return sorted(self._closed({at for at in behind if self.image in self._closed({at}, images=True)}))

    def _closed(self, numbers: Iterable[int], images: bool = False) -> set[int]:
        """These numbers and, recursively, those that they are computed from."""
        found = walk(numbers, lambda at: () if at == self.image else self.reads[at] | self.values[at])
        return found if images else found - {self.image}

    def is_all_behind(self, scores: Iterable[Node], node: Node) -> bool:
        """Is a node on every path from what is attended to, and from the image, to the scores?"""
        return self._begins.keys().isdisjoint(walk(scores, lambda at: () if at == node else sources(at)))

    def looks_at_image(self, node: Node | None) -> bool:
        """Is a node computed from the image? What is learnt is not."""
        return self.image in self._closed(self._leading_to([node]), images=True)

    def behind(self, at: int) -> set[int]:
        """The attentions that an attention's values are computed from."""
        return self._closed(self.values[at])

    def is_cross(self, at: int) -> bool:
        """Do the queries have other sources than the values?"""
        return self.reads[at] != self.values[at]
