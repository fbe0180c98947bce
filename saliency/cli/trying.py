"""Options tried before a run: what a method or metric refuses, it says before it runs the network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import Module

from saliency.cli.naming import find_method
from saliency.evaluation.baselines import BASELINES
from saliency.evaluation.explainers import Methods, Options, named_methods
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.metrics.perturbed import class_softmax


class _ReachedError(BaseException):
    """The network is run: no option was refused."""


def _reach(*_: object, **__: object) -> NoReturn:
    raise _ReachedError


@contextmanager
def _until_the_network_runs(model: Module) -> Iterator[None]:
    handle = model.register_forward_pre_hook(_reach)
    try:
        yield
    except _ReachedError:
        pass
    finally:
        handle.remove()


def try_methods(methods: Methods, model: Module, noise: Tensor) -> None:
    """Raise ``ValueError`` for options that a method of the table refuses; those of the user's own are not called.

    ``noise`` (1, C, h, w) is what the network takes. It is not run.
    """
    images, targets = noise.repeat(2, 1, 1, 1), torch.zeros(2, 1, dtype=torch.long)
    for name, explainer in named_methods(methods).items():
        if name not in BASELINES and find_method(name).row:
            with _until_the_network_runs(model):
                explainer.function(model, images, targets, **explainer.passed)


def try_metrics(metrics: Mapping[str, Options], model: Module, noise: Tensor) -> None:
    """Raise ``ValueError`` for options that a metric refuses, on maps of noise."""
    saliency = torch.rand(noise.shape[0], 1, *noise.shape[2:], generator=torch.Generator().manual_seed(0))
    known = {
        "saliency": saliency,
        "masks": torch.ones_like(saliency[:, 0], dtype=torch.bool),
        "boxes": [torch.tensor([[0, 0, 2, 2]])],
        "model": model,
        "input": noise,
        "target": torch.zeros(1, dtype=torch.long),
        "activation": class_softmax,
        "explain": _reach,
    }
    curves = torch.rand(2, 11, generator=torch.Generator().manual_seed(0))
    for name, options in metrics.items():
        metric = METRICS[name]
        given = {"case": (), "pair": (saliency, saliency), "data set": (curves,)}[metric.kind]
        evidence = {part: known[part] for part in metric.evidence} if metric.kind == "case" else {}
        with _until_the_network_runs(model):
            metric.function(*given, **evidence, **{**metric.options, **options})
