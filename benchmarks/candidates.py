"""The measurements of one-pass methods: the baselines, our own candidates and other libraries'."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module
from torchvision.models import ResNet

import saliency


class Workload(NamedTuple):
    """The arguments of every candidate: a class for each image, and several classes (N, K) for each image.

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
Run: TypeAlias = Callable[[], Any]  # the timed call
Candidate: TypeAlias = Callable[[Workload], Run]


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


def of_one_image(candidate: Candidate, side: int | None = None) -> Candidate:
    """A candidate with the first image alone, or with the corner of it of that side, on one thread: overhead shows."""

    def build(work: Workload) -> Run:
        input = work.input[:1] if side is None else work.input[:1, :, :side, :side].contiguous()
        run = candidate(work._replace(input=input, target=work.target[:1], targets=work.targets[:1]))
        return run if side is None else partial(_on_one_thread, run)

    return build


def with_baselines(candidate: Candidate) -> Candidate:
    """A candidate with as many black images beside those of the batch: what DeepLIFT has to compare."""

    def build(work: Workload) -> Run:
        input = torch.cat([work.input, torch.zeros_like(work.input)])
        return candidate(work._replace(input=input, target=2 * work.target, targets=torch.cat([work.targets] * 2)))

    return build


def _on_one_thread(run: Run) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(threads)


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


def our_deep_lift(work: Workload) -> Explain:
    return lambda target: saliency.deep_lift(work.model, work.input, target)


def our_grad_cam(work: Workload) -> Explain:
    return lambda target: saliency.grad_cam(work.model, work.input, target, work.layer)


def our_grad_cam_of_the_last_layer(work: Workload) -> Explain:
    """No layer is named: it is searched at the first call, and remembered."""
    return lambda target: saliency.grad_cam(work.model, work.input, target)


def our_grad_cam_at_the_found_layer(work: Workload) -> Explain:
    layer = saliency.find_layer(work.model, work.input, target=work.target)
    return lambda target: saliency.grad_cam(work.model, work.input, target, layer)


def our_grad_cam_of_all_targets(work: Workload) -> Run:
    return lambda: saliency.grad_cam(work.model, work.input, work.targets, work.layer)


CAMS = ("cam", "grad_cam", "grad_cam_plus_plus", "layer_cam", "xgrad_cam", "hires_cam", "eigen_grad_cam")
FURTHER_CAMS = ("eigen_cam", "kpca_cam", "fem", "finer_cam", "shapley_cam")


def our(method: str) -> Library:
    """A method of the table, at the layer."""
    function = saliency.METHODS[method].function
    return lambda work: lambda target: function(work.model, work.input, target, work.layer)


def our_cams_of_one_pass(work: Workload) -> Run:
    """Seven CAMs that share a recorded pass."""

    def run() -> list[Any]:
        shared = saliency.shared_forward(work.model, work.input, [work.layer])
        functions = (saliency.METHODS[name].function for name in CAMS)
        return [function(work.model, work.input, work.target, work.layer, shared=shared) for function in functions]

    return run


def our_gradient(work: Workload) -> Explain:
    return lambda target: saliency.gradient(work.model, work.input, target)


def our_guided_backprop(work: Workload) -> Explain:
    return lambda target: saliency.guided_backprop(work.model, work.input, target)


def our_relevance(work: Workload) -> Explain:
    return lambda target: saliency.lrp(work.model, work.input, target, rules="epsilon_plus")


def zennit_relevance(work: Workload) -> Explain:
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    model, input = deepcopy(work.model), work.input.clone()
    with torch.no_grad():
        classes = torch.eye(model(input[:1]).shape[1], device=input.device)

    def explain(target: list[int]) -> Tensor:
        with Gradient(model, EpsilonPlus(canonizers=[ResNetCanonizer()])) as attributor:
            relevance: Tensor = attributor(input, classes[target])[1]
            return relevance

    return explain


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


# Excitation backprop is given one image.


def earlier_gradient(work: Workload) -> Run:
    """Our gradient of one image at the earlier layer."""
    return lambda: saliency.gradient(work.model, work.input[:1], work.target[:1], work.earlier)


def our_excitation_backprop(work: Workload) -> Run:
    return lambda: saliency.excitation_backprop(work.model, work.input[:1], work.target[:1], work.earlier)


def our_contrastive_excitation_backprop(work: Workload) -> Run:
    arguments = (work.model, work.input[:1], work.target[:1], work.earlier, work.layer)
    return lambda: saliency.contrastive_excitation_backprop(*arguments)


def our_excitation_backprop_at_its_own_layer(work: Workload) -> Explain:
    return lambda target: saliency.excitation_backprop(work.model, work.input, target)


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
