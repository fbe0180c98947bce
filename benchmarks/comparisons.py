"""What is measured: the baselines, our own candidates and other libraries', and the table of comparisons."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torchvision.models import ResNet

import saliency


class Workload(NamedTuple):
    """What every candidate is given: a class for each image, and several classes (N, K) for each image.

    ``layer`` is where the CAMs look, ``earlier`` a layer with some network behind it.
    """

    model: Module
    input: Tensor
    target: list[int]
    targets: Tensor
    layer: str
    earlier: str


Explain: TypeAlias = Callable[[list[int]], Any]  # a class for each image -> what the library returns
Library: TypeAlias = Callable[[Workload], Explain]  # imports the library and gives it the workload
Run: TypeAlias = Callable[[], Any]  # what is timed
Candidate: TypeAlias = Callable[[Workload], Run]


class Comparison(NamedTuple):
    """Candidates measured against one baseline; the goals are upper limits of ``OURS``, relative to the baseline."""

    name: str
    baseline: Candidate
    candidates: Mapping[str, Candidate]
    time_goal: float | None = None
    memory_goal: float | None = None


# Baselines.


def forward(work: Workload) -> Run:
    """The model on the batch, in inference mode: the least that any map can take."""

    def run() -> Tensor:
        with torch.inference_mode():
            scores: Tensor = work.model(work.input)
            return scores

    return run


def forward_and_backward(work: Workload) -> Run:
    """Forward and backward down to the input, by autograd alone, with frozen parameters."""
    model = deepcopy(work.model).requires_grad_(False)

    def run() -> Tensor:
        input = work.input.detach().requires_grad_()
        scores = model(input)[range(len(work.target)), work.target]
        return torch.autograd.grad(scores.sum(), input)[0]

    return run


# Candidates. Other libraries get one copy of the model and of the input for all runs: some change what they are given.

OURS = "saliency-torch"


def once(library: Library) -> Candidate:
    """Explain one class per image."""

    def build(work: Workload) -> Run:
        explain = library(work)
        return lambda: explain(work.target)

    return build


def one_after_the_other(library: Library) -> Candidate:
    """Explain several classes per image by as many calls."""

    def build(work: Workload) -> Run:
        explain = library(work)
        columns = work.targets.T.tolist()
        return lambda: [explain(column) for column in columns]

    return build


def our_grad_cam(work: Workload) -> Explain:
    return lambda target: saliency.grad_cam(work.model, work.input, target, work.layer)


def our_grad_cam_of_all_targets(work: Workload) -> Run:
    return lambda: saliency.grad_cam(work.model, work.input, work.targets, work.layer)


def our_gradient(work: Workload) -> Explain:
    return lambda target: saliency.gradient(work.model, work.input, target)


def our_guided_backprop(work: Workload) -> Explain:
    return lambda target: saliency.guided_backprop(work.model, work.input, target)


def torchray_grad_cam(work: Workload) -> Explain:
    from torchray.attribution.grad_cam import grad_cam

    model, input = deepcopy(work.model), work.input.clone()
    return lambda target: grad_cam(model, input, target, saliency_layer=work.layer)


def torchray_guided_backprop(work: Workload) -> Explain:
    from torchray.attribution.guided_backprop import guided_backprop

    model, input = deepcopy(work.model), work.input.clone()
    return lambda target: guided_backprop(model, input, target)


def captum_grad_cam(work: Workload) -> Explain:
    from captum.attr import LayerGradCam

    model, input = deepcopy(work.model), work.input.clone()
    method = LayerGradCam(model, model.get_submodule(work.layer))
    return lambda target: method.attribute(input, target, relu_attributions=True)


def captum_guided_backprop(work: Workload) -> Explain:
    from captum.attr import GuidedBackprop

    method, input = GuidedBackprop(deepcopy(work.model)), work.input.clone()
    return lambda target: method.attribute(input, target)


def pytorch_grad_cam_grad_cam(work: Workload) -> Explain:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, input = deepcopy(work.model), work.input.clone()
    method = GradCAM(model, [model.get_submodule(work.layer)])
    return lambda target: method(input, [ClassifierOutputTarget(index) for index in target])


def pytorch_grad_cam_guided_backprop(work: Workload) -> Explain:
    from pytorch_grad_cam import GuidedBackpropReLUModel

    method = GuidedBackpropReLUModel(deepcopy(work.model), work.input.device)
    images = [image[None].clone() for image in work.input]  # it explains the first image of a batch only
    return lambda target: [method(image, index) for image, index in zip(images, target, strict=True)]


# These methods are given one image; those that need many passes for a map, fewer of them than by default.

MASKS = 128
MASKS_AT_ONCE = 32
ITERATIONS = 20
AREAS = (0.025, 0.05, 0.1, 0.2)


def earlier_gradient(work: Workload) -> Run:
    """Our gradient of one image at the earlier layer."""
    return lambda: saliency.gradient(work.model, work.input[:1], work.target[:1], work.earlier)


def our_excitation_backprop(work: Workload) -> Run:
    return lambda: saliency.excitation_backprop(work.model, work.input[:1], work.target[:1], work.earlier)


def our_contrastive_excitation_backprop(work: Workload) -> Run:
    arguments = (work.model, work.input[:1], work.target[:1], work.earlier, work.layer)
    return lambda: saliency.contrastive_excitation_backprop(*arguments)


def torchray_earlier_gradient(work: Workload) -> Run:
    from torchray.attribution.gradient import gradient

    model, input = deepcopy(work.model), work.input[:1].clone()
    return lambda: gradient(model, input, work.target[:1], saliency_layer=work.earlier)


def torchray_excitation_backprop(work: Workload) -> Run:
    from torchray.attribution.excitation_backprop import excitation_backprop

    model, input = _torchray_resnet(work.model), work.input[:1].clone()
    return lambda: excitation_backprop(model, input, work.target[:1], saliency_layer=work.earlier)


def torchray_contrastive_excitation_backprop(work: Workload) -> Run:
    from torchray.attribution.excitation_backprop import contrastive_excitation_backprop

    model, input = _torchray_resnet(work.model), work.input[:1].clone()
    return lambda: contrastive_excitation_backprop(model, input, work.target[:1], work.earlier, work.layer)


def _torchray_resnet(model: Module) -> Module:
    """A copy with the residual sums that TorchRay needs as modules."""
    from torchray.attribution.excitation_backprop import update_resnet

    copy = deepcopy(model)
    rewritten: Module = update_resnet(copy) if isinstance(copy, ResNet) else copy
    return rewritten


def masked_forwards(work: Workload) -> Run:
    """The model on the masked images that RISE needs, in the same batches."""
    masks = saliency.random_masks(MASKS, tuple(work.input.shape[2:]), device=work.input.device)
    batches = (work.input[:1] * masks).split(MASKS_AT_ONCE)

    def run() -> list[Tensor]:
        with torch.inference_mode():
            return [work.model(batch) for batch in batches]

    return run


def our_rise(work: Workload) -> Run:
    return lambda: saliency.rise(work.model, work.input[:1], num_masks=MASKS, batch_size=MASKS_AT_ONCE)


def torchray_rise(work: Workload) -> Run:
    from torchray.attribution.rise import rise

    model, input = deepcopy(work.model), work.input[:1].clone()
    return lambda: rise(model, input, num_masks=MASKS, batch_size=MASKS_AT_ONCE)


def perturbed_passes(work: Workload) -> Run:
    """Forward and backward down to the perturbed images of every iteration, by autograd alone."""
    model = deepcopy(work.model).requires_grad_(False)
    images = work.input[:1].expand(len(AREAS), -1, -1, -1)

    def run() -> None:
        for _ in range(ITERATIONS):
            perturbed = images.clone().requires_grad_()
            torch.autograd.grad(model(perturbed)[:, work.target[0]].sum(), perturbed)

    return run


def our_extremal_perturbation(work: Workload) -> Run:
    arguments = (work.model, work.input[:1], work.target[0], AREAS)
    return lambda: saliency.extremal_perturbation(*arguments, max_iter=ITERATIONS)


def torchray_extremal_perturbation(work: Workload) -> Run:
    from torchray.attribution.extremal_perturbation import extremal_perturbation

    model, input = deepcopy(work.model), work.input[:1].clone()
    return lambda: extremal_perturbation(model, input, work.target[0], list(AREAS), max_iter=ITERATIONS)


GRAD_CAM_PEERS: Mapping[str, Library] = {
    "TorchRay": torchray_grad_cam,
    "Captum": captum_grad_cam,
    "pytorch-grad-cam": pytorch_grad_cam_grad_cam,
}
GUIDED_PEERS: Mapping[str, Library] = {
    "TorchRay": torchray_guided_backprop,
    "Captum": captum_guided_backprop,
    "pytorch-grad-cam": pytorch_grad_cam_guided_backprop,
}

COMPARISONS = [
    Comparison(
        "Grad-CAM / forward pass",
        forward,
        {OURS: once(our_grad_cam), **{name: once(peer) for name, peer in GRAD_CAM_PEERS.items()}},
        time_goal=1.10,
        memory_goal=1.05,
    ),
    Comparison(
        "Grad-CAM of 5 classes / forward pass",
        forward,
        {
            OURS: our_grad_cam_of_all_targets,
            **{name: one_after_the_other(peer) for name, peer in GRAD_CAM_PEERS.items()},
        },
        time_goal=1.25,
    ),
    Comparison(
        "guided backpropagation / our gradient",
        once(our_gradient),
        {OURS: once(our_guided_backprop), **{name: once(peer) for name, peer in GUIDED_PEERS.items()}},
        time_goal=1.10,
    ),
    Comparison("gradient / forward and backward pass", forward_and_backward, {OURS: once(our_gradient)}),
    Comparison(
        "excitation backprop of one image at an earlier layer / our gradient there",
        earlier_gradient,
        {OURS: our_excitation_backprop},
        time_goal=1.35,
    ),
    Comparison(
        "contrastive excitation backprop of one image at an earlier layer / our gradient there",
        earlier_gradient,
        {OURS: our_contrastive_excitation_backprop},
        time_goal=1.9,
    ),
    Comparison(
        "TorchRay's excitation backprop of one image at an earlier layer / its gradient there",
        torchray_earlier_gradient,
        {"TorchRay": torchray_excitation_backprop, "TorchRay, contrastive": torchray_contrastive_excitation_backprop},
    ),
    Comparison(
        f"RISE of one image, {MASKS} masks / forward passes of the masked images",
        masked_forwards,
        {OURS: our_rise, "TorchRay": torchray_rise},
        time_goal=1.05,
    ),
    Comparison(
        f"{ITERATIONS} iterations of extremal perturbations, {len(AREAS)} areas / passes of the perturbed images",
        perturbed_passes,
        {OURS: our_extremal_perturbation, "TorchRay": torchray_extremal_perturbation},
        time_goal=1.2,
    ),
]
