"""Variants: how much of a score is left when the input, or a layer's activation, is changed."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from saliency.engine.call import Call
from saliency.engine.interrupts import interruptible
from saliency.engine.outputs import Output
from saliency.engine.site import Site
from saliency.engine.state import rows_at
from saliency.engine.tail import Tail
from saliency.engine.targets import Targets

# run(tensors, rows): the model with B tensors in place of samples ``rows`` (B,). Yields, until all are
# done, which of them (a LongTensor on the CPU) and the model's output for those.
Run: TypeAlias = Callable[[Tensor, Tensor], Iterator[tuple[Tensor, Output]]]
Progress: TypeAlias = Callable[[int, int], object] | None  # called with how many are done, and of how many


def scores(
    run: Run,
    targets: Targets,
    rows: Tensor,
    variants: Callable[[Tensor], Tensor],
    size: int | None = None,
    progress: Progress = None,
) -> Tensor:
    r"""The explained scores (B, K) of B variants of N samples.

    .. math:: s_{bk} = f_k(v_b)

    ``rows`` (B,) is the sample that each variant belongs to; ``variants(index)`` returns the tensors of those of the
    B that are needed, ``size`` at a time (``None``: all): LongTensors on the CPU. Nothing waits for the device.
    ``progress(done, B)`` is called after every chunk. Use it inside ``evaluating(model)``.

    >>> from saliency.engine.call import make_call
    >>> x, run = replacing_input(make_call(torch.nn.Flatten(), torch.tensor([[[3.0, 4.0]]])), 0)
    >>> scores(run, Targets([[0, 1]], 1), torch.tensor([0, 0, 0]), lambda index: x * index[:, None, None], size=2)
    tensor([[0., 0.],
            [3., 4.],
            [6., 8.]])
    """
    found = []
    for index in torch.arange(len(rows), device="cpu").split(int(size or max(1, len(rows)))):
        samples = rows[index]
        parts = [(at, targets.rows(samples[at]).scores(output)) for at, output in run(variants(index), samples)]
        found.append(in_order(parts))
        if progress is not None:
            with interruptible():
                progress(int(index[-1]) + 1, len(rows))
    return torch.cat(found)


def in_order(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Concatenate the parts of a run in order; each part is the numbers of its rows, and the rows.

    >>> in_order([(torch.tensor([1]), torch.tensor([5.0])), (torch.tensor([2, 0]), torch.tensor([6.0, 4.0]))])
    tensor([4., 5., 6.])
    """
    if len(parts) == 1:
        return parts[0][1]
    order = torch.cat([at for at, _ in parts]).argsort()
    values = torch.cat([value for _, value in parts])
    return rows_at(values, order)


def replacing_input(call: Call, at: int) -> tuple[Tensor, Run]:
    """One of the inputs (N, ...), and a function that runs the model with it replaced."""

    def run(tensors: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Output]]:
        yield torch.arange(len(rows), device="cpu"), call.replacing({at: tensors}, rows).run()

    return call.inputs[at].detach(), run


def replacing_image(call: Call) -> tuple[Tensor, Run]:
    """The image (N, C, ...), or for a clip (B, C, T, H, W), and a function that runs the model with it replaced."""
    x, run = replacing_input(call, call.image_at)
    if not call.is_clip(x):
        return x, run
    return x.transpose(1, 2), lambda tensors, rows: run(tensors.transpose(1, 2), rows)


def replacing_layer(call: Call, site: Site, record_all: bool = False, copies: bool = False) -> tuple[Tensor, Run]:
    """A layer's activations (N, ...), and a function that runs the network after it with them replaced.

    Samples run one after another, each with its own :class:`Tail`, which takes the same options.
    """
    samples = torch.arange(call.samples, device="cpu").split(1)
    tails = [Tail(site, call.rows(sample), record_all, copies=copies) for sample in samples]

    def run(tensors: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Output]]:
        for sample, tail in enumerate(tails):
            at = (rows == sample).nonzero().flatten()
            if len(at) == len(rows):
                yield at, tail(tensors)
            elif len(at):
                yield at, tail(rows_at(tensors, at))

    return torch.cat([tail.activation for tail in tails]), run
