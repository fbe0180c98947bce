"""The measurements of methods of many or kept passes, each of one image, with fewer passes than by default."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from io import StringIO
from typing import Any

import torch
from torch import Tensor
from torchvision.models import ResNet

import saliency
from benchmarks.candidates import Candidate, Run, Workload

MASKS = 128
MASKS_AT_ONCE = 32
ITERATIONS = 20
AREAS = (0.025, 0.05, 0.1, 0.2)


def masked_forwards(work: Workload) -> Run:
    """The model on the masked images that RISE needs, in the same batches."""
    masks = saliency.random_masks(MASKS, tuple(work.input.shape[2:]), device=work.input.device)
    return _forwards(work, (work.input[:1] * masks).split(MASKS_AT_ONCE))


def _forwards(work: Workload, batches: Sequence[Tensor]) -> Run:
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


# Paths.

STEPS = 50
STEPS_OF_CONDUCTANCE = 20
STEPS_AT_ONCE = 10


def _at(work: Workload, earlier: bool) -> str:
    return work.earlier if earlier else work.layer


def our_integrated_gradients(earlier: bool = False, at_once: int | None = None) -> Candidate:
    """At the layer, or at the earlier one; all steps in one chunk unless ``at_once`` says less."""

    def build(work: Workload) -> Run:
        arguments = (work.model, work.input[:1], work.target[0], _at(work, earlier))
        return lambda: saliency.integrated_gradients(*arguments, n_steps=STEPS, internal_batch_size=at_once)

    return build


def captum_integrated_gradients(earlier: bool = False) -> Candidate:
    def build(work: Workload) -> Run:
        from captum.attr import LayerIntegratedGradients

        model, input = deepcopy(work.model), work.input[:1].clone()
        method = LayerIntegratedGradients(model, model.get_submodule(_at(work, earlier)))
        options = {"target": work.target[0], "n_steps": STEPS, "internal_batch_size": STEPS_AT_ONCE}
        return lambda: method.attribute(input, **options)

    return build


def our_conductance(work: Workload) -> Run:
    arguments = (work.model, work.input[:1], work.target[0], work.layer)
    options: dict[str, Any] = {"n_steps": STEPS_OF_CONDUCTANCE, "internal_batch_size": STEPS_AT_ONCE}
    return lambda: saliency.conductance(*arguments, **options)


def captum_conductance(work: Workload) -> Run:
    from captum.attr import LayerConductance

    model, input = deepcopy(work.model), work.input[:1].clone()
    method = LayerConductance(model, model.get_submodule(work.layer))
    options = {"target": work.target[0], "n_steps": STEPS_OF_CONDUCTANCE, "internal_batch_size": STEPS_AT_ONCE}
    return lambda: method.attribute(input, **options)


def our_gradient_shap(work: Workload) -> Run:
    arguments, baselines = (work.model, work.input[:1], work.target[0]), _two_baselines(work)
    return lambda: saliency.gradient_shap(*arguments, baselines=baselines, n_samples=5, stdevs=0.1)


def captum_gradient_shap(work: Workload) -> Run:
    from captum.attr import GradientShap

    method, input, baselines = GradientShap(deepcopy(work.model)), work.input[:1].clone(), _two_baselines(work)
    return lambda: method.attribute(input, baselines, n_samples=5, stdevs=0.1, target=work.target[0])


def _two_baselines(work: Workload) -> Tensor:
    return torch.cat([torch.zeros_like(work.input[:1]), work.input[:1] / 2])


# Ablation: all channels of the layer. For one channel the other libraries run the whole network, and all take minutes:
# they are given PART of the CHANNELS of a ResNet-50. Both run it twice more, whatever the number of channels.

CHANNELS = 2048
PART = 32
SHARE = (PART + 2) / (CHANNELS + 2)


def _channels_of(work: Workload, layer: str) -> int:
    found: list[int] = []
    hook = work.model.get_submodule(layer).register_forward_hook(lambda *call: found.append(call[2].shape[1]))
    with hook, torch.inference_mode():
        work.model(work.input[:1])
    return found[0]


def our_feature_ablation(work: Workload) -> Run:
    mask = torch.arange(_channels_of(work, work.layer), device=work.input.device).view(1, -1, 1, 1)
    arguments = (work.model, work.input[:1], work.target[0], work.layer)
    return lambda: saliency.feature_ablation(*arguments, layer_mask=mask)


def captum_feature_ablation_of_a_part(work: Workload) -> Run:
    """Captum's ablation of ``PART`` features, each of them many channels."""
    from captum.attr import LayerFeatureAblation

    model, input = deepcopy(work.model), work.input[:1].clone()
    method = LayerFeatureAblation(model, model.get_submodule(work.layer))
    mask = torch.arange(_channels_of(work, work.layer), device=input.device).remainder(PART).view(1, -1, 1, 1)
    return lambda: method.attribute(input, target=work.target[0], layer_mask=mask)


def our_ablation_cam(work: Workload) -> Run:
    return lambda: saliency.ablation_cam(work.model, work.input[:1], work.target[0], work.layer)


def pytorch_grad_cam_ablation_cam_of_a_part(work: Workload) -> Run:
    """Ablation-CAM of pytorch-grad-cam, which takes the other channels to change nothing."""
    from pytorch_grad_cam import AblationCAM
    from pytorch_grad_cam.ablation_layer import AblationLayer
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class PartOfTheChannels(AblationLayer):  # type: ignore[misc]
        def activations_to_be_ablated(self, activations: Any, ratio_channels_to_ablate: float = 1.0) -> Any:
            self.indices = super().activations_to_be_ablated(activations)[:PART]
            return self.indices

    model, input, target = deepcopy(work.model), work.input[:1].clone(), [ClassifierOutputTarget(work.target[0])]
    method = AblationCAM(model, [model.get_submodule(work.layer)], ablation_layer=PartOfTheChannels())

    def run() -> Any:
        with redirect_stderr(StringIO()):  # it shows its progress
            return method(input, target)

    return run


# Score-CAM at a layer of few channels.


def _layer_of_few_channels(work: Workload) -> str:
    return "maxpool" if isinstance(work.model, ResNet) else work.earlier


def channel_masked_forwards(work: Workload) -> Run:
    """The model on as many masked images as the layer has channels, in the batches of Score-CAM."""
    masks = torch.rand(_channels_of(work, _layer_of_few_channels(work)), 1, *work.input.shape[2:])
    return _forwards(work, (work.input[:1] * masks.to(work.input.device)).split(MASKS_AT_ONCE))


def our_score_cam(work: Workload) -> Run:
    arguments = (work.model, work.input[:1], work.target[0], _layer_of_few_channels(work))
    return lambda: saliency.score_cam(*arguments, perturbations_per_eval=MASKS_AT_ONCE)


# Several methods, or many classes, of one pass.

CLASSES = 200


def _four(work: Workload, is_shared: bool) -> Run:
    model, input, target = work.model, work.input[:1], work.target[:1]
    methods: list[Callable[..., Any]] = [saliency.gradient, saliency.guided_backprop, saliency.deconvnet]

    def run() -> list[Any]:
        # The same tensor: a pass of another one, be it a view of the same memory, is not shared.
        shared = saliency.shared_forward(model, input, ["", work.earlier]) if is_shared else None
        maps = [method(model, input, target, shared=shared) for method in methods]
        return [*maps, saliency.excitation_backprop(model, input, target, work.earlier, shared=shared)]

    return run


def four_methods_alone(work: Workload) -> Run:
    """Gradient, guided backpropagation and DeConvNet at the input, excitation backprop at the earlier layer."""
    return _four(work, is_shared=False)


def four_methods_of_one_pass(work: Workload) -> Run:
    return _four(work, is_shared=True)


def shared_pass(work: Workload) -> Run:
    return lambda: saliency.shared_forward(work.model, work.input[:1], ["", work.earlier])


def nothing(work: Workload) -> Run:
    return lambda: None


def our_grad_cam_of_many_classes(work: Workload) -> Run:
    with torch.inference_mode():
        classes = work.model(work.input[:1]).shape[1]
    targets = torch.arange(CLASSES)[None] % classes
    return lambda: saliency.grad_cam(work.model, work.input[:1], targets, work.layer)
