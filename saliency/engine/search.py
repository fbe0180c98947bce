"""Search: find the layer to explain if the user names none, and remember it."""

import threading
import weakref
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from types import MethodType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from saliency.engine.call import Call, check_parameters, make_call
from saliency.engine.candidates import NO_GRID, Output, Watch
from saliency.engine.graph import Graph, origins
from saliency.engine.interrupts import interruptible
from saliency.engine.layers import get_module, plain_name, resolve_layer
from saliency.engine.layouts import read, to_channels_first
from saliency.engine.outputs import main_output
from saliency.engine.probe import add_hook
from saliency.engine.sending import retry_with_copies
from saliency.engine.state import evaluating
from saliency.engine.targets import Target, Targets

_EVERYWHERE = 0.05  # a gradient at this fraction of the cells, or less, is zero almost everywhere
_NAMED = 5  # the error describes this many layers
_MOST = 64  # answers remembered per model: a function defined inside a loop is a new target each time

_lock = threading.Lock()
_remembered: "weakref.WeakKeyDictionary[Module, dict[Hashable, tuple[str, weakref.ref[Module]]]]" = (
    weakref.WeakKeyDictionary()
)


def find_layer(model: Module, input: Tensor, /, *args: object, target: Target = None, **kwargs: object) -> str:
    """The name of the last layer that returns a map at which the gradient of ``target`` is not zero almost everywhere.

    That is the last block of a convolutional network, and the last normalisation before attention in a vision
    transformer. Without a target, all scores count; further arguments are passed to the model. Costs one forward pass
    of the first image and a backward pass down to the layer. Raises ``ValueError`` if there is no such layer.

    >>> from torch.nn import Conv2d, Flatten, Linear, Sequential
    >>> find_layer(Sequential(Conv2d(1, 2, 3), Flatten(), Linear(32, 5)), torch.rand(1, 1, 6, 6), target=1)
    '0'
    """
    return found_layer(_make_call(model, input, args, kwargs), target, anew=True)[0]


class Candidate(NamedTuple):
    """A layer that was considered: the shape of its output, and why it is not a map, or cannot be told from one."""

    name: str
    shape: tuple[int, ...]
    problem: str


def layer_candidates(
    model: Module, input: Tensor, /, *args: object, target: Target = None, **kwargs: object
) -> list[Candidate]:
    """The layers that :func:`find_layer` chooses from: those that return a tensor, in the order in which they run.

    It returns the last one without a ``problem``. Arguments and errors are the same.

    >>> from torch.nn import Conv2d, Flatten, Linear, Sequential
    >>> layer_candidates(Sequential(Conv2d(1, 2, 3), Flatten(), Linear(32, 5)), torch.rand(1, 1, 6, 6), target=1)[:2]
    [Candidate(name='0', shape=(1, 2, 4, 4), problem=''), Candidate(name='1', shape=(1, 32), problem='no grid')]
    """
    call = _make_call(model, input, args, kwargs)
    outputs = retry_with_copies(lambda _: _search(call, target))
    return [Candidate(found.name, found.shape, found.problem) for found in outputs]


def _make_call(model: Module, input: Tensor, args: tuple[object, ...], kwargs: dict[str, object]) -> Call:
    tensors = all(isinstance(arg, Tensor) and arg.ndim > 1 for arg in args)
    return make_call(model, (input, *args), None, kwargs) if tensors else make_call(model, input, args, kwargs)


def found_layer(call: Call, target: Target = None, anew: bool = False) -> tuple[str, Module]:
    """The layer that :func:`find_layer` finds, and its name, remembered from an earlier call like this one.

    Calls are alike if they have the same model with the same modules, the same shapes (except the number of samples),
    dtypes, devices and other arguments, and the same kind of target: all indices are of one kind, but each function is
    its own. ``anew`` searches again and remembers the result.
    """
    key = (hash(call.modules), _signature(call), _kind(target))
    name = None if anew else _recall(call.model, key)
    if name is None:
        outputs = retry_with_copies(lambda _: _search(call, target))
        name = next(found.name for found in reversed(outputs) if not found.problem)
        _remember(call.model, key, name)
    return name, resolve_layer(call.model, name)


def last_of_each_grid(call: Call, target: Target) -> list[str]:
    """The last layer of each resolution, up to the one that :func:`find_layer` finds, at the same cost."""
    size, names = tuple(call.image_of().shape[2:]), dict[tuple[int, ...], str]()
    for found in retry_with_copies(lambda _: _search(call, target)):
        reading = None if found.problem else read(found.shape, size, found.module, found.seen)
        if reading is not None:
            names.pop(reading.sides, None)  # keeps the order of the last layers
            names[reading.sides] = found.name
    return [*names.values()]


def _recall(model: Module, key: Hashable) -> str | None:
    with _lock:
        name, reference = _remembered.get(model, {}).get(key, ("", None))
    layer = None if reference is None else reference()
    return name if layer is not None and get_module(model, name) is layer else None


def _remember(model: Module, key: Hashable, name: str) -> None:
    layer = get_module(model, name)
    with _lock:
        answers = _remembered.setdefault(model, {})
        answers.pop(key, None)
        if len(answers) >= _MOST:
            del answers[next(iter(answers))]
        if layer is not None:
            answers[key] = name, weakref.ref(layer)


def _signature(call: Call) -> Hashable:
    def describe(leaf: object) -> tuple[object, ...]:
        if isinstance(leaf, Tensor):
            along = leaf.shape[:1] == call.inputs[0].shape[:1]
            return leaf.shape[1:] if along else leaf.shape, leaf.dtype, leaf.device
        return type(leaf), leaf if isinstance(leaf, (str, int, float)) else None

    leaves = tree_leaves((call.inputs, call.args, dict(call.kwargs)))
    return len(call.inputs), tuple(call.kwargs), tuple(map(describe, leaves))


def _kind(target: Target) -> Hashable:
    if isinstance(target, list) and target:
        return _kind(target[0])
    if isinstance(target, Tensor):
        return "gradient" if target.is_floating_point() else "index"
    if callable(target):
        return _identity(target)
    return "none" if target is None else "entry" if isinstance(target, tuple) else "index"


def _identity(function: Callable[..., object]) -> Hashable:
    """A key that is equal for the same function only, and does not keep it alive."""
    try:
        known = weakref.WeakMethod(function) if isinstance(function, MethodType) else weakref.ref(function)
        hash(known)
    except TypeError:  # it does not support weak references, or is not hashable
        return object()
    return known


def _search(call: Call, target: Target) -> list[Output]:
    """The layers that return a tensor; the last one without a problem is a map that the score of ``target`` depends on.

    Costs a forward pass of one sample (or the whole batch, if the target is a function of its output), and a backward
    pass down to that layer. Raises ``ValueError``, with the layers considered, if there is none.
    """
    check_parameters(call, grad=True)
    if call.image.is_meta:
        raise ValueError("saliency_layer=None is not possible on device 'meta', which has no values; expected a name.")
    index = torch.arange(call.samples if callable(target) and not isinstance(target, Tensor) else 1, device="cpu")
    targets = None if target is None else Targets(target, call.samples).rows(index)
    call = call.rows(index)
    image = call.image_of()
    watch = Watch(len(image), tuple(image.shape[2:]))
    with evaluating(call.model, call.modules), torch.enable_grad():
        output = _run(call.mapped(watch.give), watch)
        score = _score(output, targets)
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        outputs = list(watch.outputs.values())
        _judge(outputs, Graph(score, leaves, watch.given))
        _choose(outputs, score, tuple(image.shape[2:]))
        return outputs


def _run(call: Call, watch: Watch) -> object:
    with ExitStack() as stack:
        for path, module in call.model.named_modules():
            if name := plain_name(path):
                hook = watch.hook(name)
                stack.callback(add_hook(module.register_forward_hook, hook, with_kwargs=True).remove)
        stack.enter_context(watch.grids)
        return call.run()


def _score(output: object, targets: Targets | None) -> Tensor:
    """One number that depends on everything the targets explain; weighted, because a softmax sums to 1."""
    if targets is None:
        leaves = tree_leaves(main_output(output))
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    else:
        found = [targets.scores(output)]
    scores = torch.cat([x.flatten() for x in found]) if found else torch.zeros(0, device="cpu")
    return (scores * torch.linspace(1, 2, len(scores), dtype=scores.dtype, device=scores.device)).sum()


def _judge(outputs: list[Output], graph: Graph) -> None:
    """Note which outputs are not maps, by where they are in the graph of the score."""
    nodes = [(found, found.edge.node) for found in outputs if found.edge is not None]
    # A module whose tokens do not depend on the input, but whose output does, attends: its tokens are queries.
    asking = [found for found, node in nodes if graph.depends(node) and not all(map(graph.depends, found.stream))]
    queries = {found.shape[1] for found in asking}
    for found, node in nodes:
        if node not in graph:
            found.problem = "no gradient of this target"
        elif not graph.depends(node):
            found.problem = "does not depend on the input"
        elif graph.is_returned(node):
            found.problem = "the score itself"
        elif all(name.startswith(("Softmax", "Adaptive")) for name in origins(node)):
            found.problem = "attention weights, or an adaptive pool"
        elif len(found.shape) == 3 and found.shape[1] in queries:
            found.problem = "queries"
    for found in outputs:
        # A dropout inside an adapter is only one of the layers that are given this map.
        if not found.problem and any(other is found.same and not other.problem for other in outputs):
            found.problem = "its input, unchanged"


def _choose(outputs: list[Output], score: Tensor, size: tuple[int, ...]) -> None:
    """Find the last map whose gradient is not zero almost everywhere, and note the problem of those after it."""
    maps = [(found, found.edge) for found in reversed(outputs) if found.edge is not None and not found.problem]
    shares: list[float] = []
    while len(shares) < len(maps):
        some = maps[len(shares) : 2 * len(shares) + 1]  # often the first will do, and gradients are costly
        with interruptible():
            gradients = torch.autograd.grad(score, [edge for _, edge in some], retain_graph=True, allow_unused=True)
        for (found, _), gradient in zip(some, gradients, strict=True):
            shares.append(0 if gradient is None else _share_of_cells(gradient, size, found))
            if shares[-1] > _EVERYWHERE:
                return
            found.problem = f"a gradient at {shares[-1]:.1%} of its cells"
    raise _no_layer(outputs, score, shares)


def _share_of_cells(gradient: Tensor, size: tuple[int, ...], found: Output) -> float:
    """The fraction of the cells of the grid, without extra tokens, at which the gradient is not zero."""
    gradient = gradient.transpose(0, 1) if found.turned else gradient
    return (to_channels_first(gradient, size, module=found.module, seen=found.seen) != 0).any(1).float().mean().item()


def _no_layer(outputs: list[Output], score: Tensor, shares: list[float]) -> ValueError:
    problem = "" if score.requires_grad else ": the score is computed without gradients"
    if shares and not any(shares):
        cause = "a quantised operation or a head of zeros"
        problem = f": the gradient of this target is zero at all of them, as before {cause}"
    if not outputs:
        return ValueError(
            "saliency_layer=None finds no layer: no module of the model returned a tensor, as in TorchScript and "
            "exported programs, which run none; expected '' for the input, or a model made of modules."
        )
    last = [found for found in outputs if found.problem != NO_GRID] or outputs
    seen = "; ".join(map(str, reversed(last[-_NAMED:])))
    looked = f" (considered, the last first: {seen})" if seen else ""
    return ValueError(
        f"saliency_layer=None finds no layer with a spatial output that the score depends on{problem}{looked}; "
        "expected a layer's name."
    )
