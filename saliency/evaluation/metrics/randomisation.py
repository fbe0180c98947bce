"""Sanity checks: does a map depend on the model's parameters, and on the class? Lower is better."""

import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import chain, groupby, pairwise
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_leaves

from saliency.engine.checks import (
    check_flag,
    check_maps_type,
    check_model,
    check_seed,
    check_tensor,
    check_type,
    describe,
    is_int,
    is_positive_int,
    shown,
)
from saliency.engine.layers import resolve_layer, unwrap
from saliency.engine.outputs import main_output
from saliency.engine.state import evaluating, own_copy
from saliency.evaluation.metrics.agreement import rank_correlation

Explain: TypeAlias = Callable[[Module, Tensor, Tensor], Tensor]  # model, input, target -> maps (N, 1, h, w)
Similarity: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # two batches of maps -> (N,)

POWER_ITERATIONS = 20


def parameter_groups(
    model: Module, layers: Sequence[str] | None = None, steps: int | None = None
) -> list[tuple[str, ...]]:
    """Groups of modules, by name, that are randomised one group after another, from the output towards the input.

    By default every module that owns parameters is a group of its own, with its parametrisations, and the module that
    was registered last comes first. With ``layers``, each of them is a group, with its submodules, in the given order.
    ``steps`` merges neighbouring groups into at most that many, of about equal size. Raises ``ValueError`` for a layer
    that is unknown or has no parameters, and for ``steps`` below 1.

    >>> parameter_groups(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2)))
    [('2',), ('0',)]
    """
    inner = unwrap(model)
    owners = {module: name for name, module in inner.named_modules() if any(True for _ in module.parameters(False))}
    groups: list[tuple[str, ...]]
    if layers is None:
        of_layer = groupby(reversed(owners.values()), lambda name: name.partition(".parametrizations.")[0])
        groups = [tuple(names) for _, names in of_layer]
    else:
        check_type("layers", layers, (list, tuple), "a list of names")
        found = [resolve_layer(inner, layer, "layers") for layer in layers]
        groups = [tuple(owners[part] for part in layer.modules() if part in owners) for layer in found]
    if not groups or not all(groups):
        raise ValueError(f"layers={layers!r} hold no parameters; expected layers with parameters.")
    if steps is None:
        return groups
    if not is_int(steps) or steps < 1:
        raise ValueError(f"steps={shown(steps)} is not a number of steps; expected an int >= 1 or None.")
    steps = min(steps, len(groups))
    ends = [len(groups) * step // steps for step in range(steps + 1)]
    return [tuple(chain(*groups[start:end])) for start, end in pairwise(ends)]


def parameter_randomisation(
    model: Module,
    explain: Explain,
    input: Tensor,
    target: Tensor,
    saliency: Tensor,
    cascading: bool = True,
    layers: Sequence[str] | None = None,
    steps: int | None = None,
    seed: int = 0,
    similarity: Similarity = rank_correlation,
) -> Tensor:
    r"""Similarity (N, L) of the maps ``saliency`` to those of the model after each of L randomisations.

    .. math:: r_{nl} = \mathrm{similarity}(s_n, \mathrm{explain}(f_{\theta'_l}, x, y)_n)

    Step l randomises the first l of :func:`parameter_groups`, from the output down, or, if not ``cascading``, only the
    l-th. A module's ``reset_parameters()`` draws its parameters and resets its running statistics; a parameter that it
    does not change, such as one behind weight norm or pruning, has its values shuffled. The values depend on ``seed``
    alone: they are the same in both modes and on every device. ``explain(model, input, target)`` is called with copies
    of the model, so it has to look up its layer by name.
    Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018.
    Raises the errors of :func:`parameter_groups`, and ``ValueError`` for an invalid ``seed``.
    """
    check_seed(seed)
    check_flag("cascading", cascading)
    _check_asked(explain, input, saliency)
    groups = parameter_groups(model, layers, steps)
    networks = _randomised_networks(model, groups, cascading, seed)
    return torch.stack([similarity(saliency, explain(network, own_copy(input), target)) for network in networks], 1)


def random_logit(
    model: Module,
    explain: Explain,
    input: Tensor,
    target: Tensor,
    saliency: Tensor,
    classes: int | None = None,
    seed: int = 0,
    similarity: Similarity = rank_correlation,
) -> Tensor:
    r"""Similarity (N,) of the maps ``saliency`` of the classes ``target`` (N,) to the maps of other classes.

    .. math:: r_n = \mathrm{similarity}(s_n, \mathrm{explain}(f, x, y')_n), \quad y'_n \ne y_n

    ``seed`` draws another class y' for each class y, so it does not depend on the batch. ``classes`` is the number of
    classes; None counts the model's outputs, in a forward pass of the first image.
    Sixt et al., When Explanations Lie, ICML 2020. Raises ``ValueError`` for fewer than two classes, and for an invalid
    ``target`` or ``seed``.
    """
    check_seed(seed)
    check_model(model)
    _check_asked(explain, input, saliency)
    check_tensor("target", target)
    if classes is None:
        with evaluating(model):
            output = main_output(model(input[:1].detach().clone()))
        classes = output.shape[1] if isinstance(output, Tensor) and output.ndim > 1 else 0
    if not is_positive_int(classes) or classes < 2:
        raise ValueError(f"classes={shown(classes)} leaves no other class; expected an int >= 2.")
    fits = target.shape == input.shape[:1] and not target.is_floating_point()
    if not fits or not ((target >= 0) & (target < classes)).all():
        given = reprlib.repr(target.tolist()) if target.ndim == 1 else describe(target)
        raise ValueError(f"target={given} is not one class per sample; expected {len(input)} ints below {classes}.")
    shift = _drawn(1, classes, (classes,), seed).to(target.device)
    return similarity(saliency, explain(model, own_copy(input), (target + shift[target]) % classes))


def _check_asked(explain: object, input: object, saliency: object) -> None:
    if not callable(explain):
        raise ValueError(f"explain={shown(explain)} is not callable; expected a function of model, input and target.")
    check_tensor("input", input)
    check_maps_type("saliency", saliency)
    if isinstance(input, Tensor) and input.ndim < 2:
        raise ValueError(f"input={describe(input)} is not a batch; expected (N, C, ...).")


def _randomised_networks(
    model: Module, groups: Sequence[Sequence[str]], cascading: bool, seed: int
) -> Iterator[Module]:
    inner = unwrap(model)
    source = dict(_randomised(inner, seed).named_modules())
    network = _copy(inner)
    for group in groups:
        network = network if cascading else _copy(inner)
        parts = dict(network.named_modules())
        with torch.inference_mode(False), torch.no_grad():
            for name in group:
                _take_values(parts[name], source[name])
        yield network


def _drawn(low: int, high: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random integers, drawn on the CPU whatever the default device: the same for every device."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(int(seed)), device="cpu")


def _copy(model: Module) -> Module:
    """A deep copy. Hooks of the old weight norm leave a tensor with a graph on their module; it is copied detached."""
    with torch.inference_mode(False):  # a copy made in inference mode has no gradients
        kept = [value for module in model.modules() for value in tree_leaves(vars(module)) if _is_made(value)]
        return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept})


def _is_made(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.grad_fn is not None


def _take_values(module: Module, source: Module) -> None:
    for part, other in zip(_parts(module), _parts(source), strict=True):
        for values in ("parameters", "buffers"):
            for own, drawn in zip(getattr(part, values)(False), getattr(other, values)(False), strict=True):
                own.copy_(drawn)


def _parts(module: Module) -> list[Module]:
    """The modules whose state is randomised together: a parametrisation's belongs to the parameter that it computes."""
    return list(module.modules()) if isinstance(module, ParametrizationList) else [module]


def _randomised(model: Module, seed: int) -> Module:
    """A copy on the CPU with every module randomised."""
    network = _copy(model).cpu()
    # Not the seed itself: a network built after torch.manual_seed(seed) would be drawn as it was.
    state = int(_drawn(0, 2**63 - 1, (), seed))
    # reset_parameters() draws from the global generator: here the CPU's, and no other.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(state)
        versions = {parameter: parameter._version for parameter in network.parameters()}
        for module in network.modules():
            vars(module).update({name: x.cpu() for name, x in vars(module).items() if isinstance(x, Tensor)})
            _reset(module)
            for parameter in module.parameters(False):
                if parameter._version == versions[parameter]:  # nothing has reset it, or a hook computes it
                    order = torch.randperm(parameter.numel(), device="cpu")
                    parameter.copy_(parameter.flatten()[order].view_as(parameter))
        _settle(network)
    return network


def _reset(module: Module) -> None:
    """Call ``reset_parameters()``, if there is one, and assign the values drawn for a parametrised parameter to it."""
    reset, parametrised = getattr(module, "reset_parameters", None), getattr(module, "parametrizations", {})
    if not callable(reset) or not (module._parameters or parametrised):
        return
    with parametrize.cached():
        reset()
        drawn = {name: getattr(module, name).clone() for name in parametrised}
    for name, value in drawn.items():
        with suppress(NotImplementedError, RuntimeError, ValueError):  # the parametrisation cannot be inverted
            setattr(module, name, value)


def _settle(network: Module) -> None:
    """Estimate the spectral norms of the new weights: in evaluation mode that would never happen."""
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                for _ in range(POWER_ITERATIONS):
                    hook.compute_weight(module, do_power_iteration=True)
        if isinstance(module, ParametrizationList):
            modes = {part: part.training for part in module.modules()}
            module.train()
            for _ in range(POWER_ITERATIONS):
                module()
            for part, training in modes.items():
                part.training = training
