"""The table of comparisons; the candidates are in ``candidates.py`` and ``many_passes.py``."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks import candidates as one
from benchmarks import many_passes as many
from benchmarks import transformers as vits
from benchmarks.candidates import (
    GRAD_CAM_PEERS,
    GUIDED_PEERS,
    OURS,
    Candidate,
    Workload,
    of_one_image,
    once,
    one_after_the_other,
)


class Comparison(NamedTuple):
    """Candidates measured against one baseline; the goals are upper limits of ``OURS``, relative to the baseline.

    A baseline may do only a ``share`` of its work: its time is divided by that. Where there is a goal in megabytes
    above the baseline's peak, memory alone is measured. ``workload`` changes what all of them are given.
    """

    name: str
    baseline: Candidate
    candidates: Mapping[str, Candidate]
    time_goal: float | None = None
    memory_goal: float | None = None
    share: float = 1.0
    megabytes_goal: float | None = None
    workload: Callable[[Workload], Workload] | None = None


def times_faster(times: float) -> float:
    """The time goal of a candidate that is so many times as fast as its baseline.

    >>> times_faster(200)
    0.005
    """
    return 1 / times


GRAD_CAM_COMPARISONS = [
    Comparison(
        "Grad-CAM / forward pass",
        one.forward,
        {OURS: once(one.our_grad_cam), **{name: once(peer) for name, peer in GRAD_CAM_PEERS.items()}},
        time_goal=1.05,
        memory_goal=1.05,
    ),
    Comparison(
        "Grad-CAM with no layer named / forward pass",
        one.forward,
        {OURS: once(one.our_grad_cam_of_the_last_layer)},
        time_goal=1.10,
    ),
    Comparison(
        "Grad-CAM of 5 classes / forward pass",
        one.forward,
        {
            OURS: one.our_grad_cam_of_all_targets,
            **{name: one_after_the_other(peer) for name, peer in GRAD_CAM_PEERS.items()},
        },
        time_goal=1.20,
    ),
    Comparison(
        f"Grad-CAM of {many.CLASSES} classes of one image / of one class",
        of_one_image(once(one.our_grad_cam)),
        {OURS: many.our_grad_cam_of_many_classes},
        memory_goal=1.2,
    ),
]

CAM_COMPARISONS = [
    *(
        Comparison(f"{name} / forward pass", one.forward, {OURS: once(one.our(name))}, time_goal=1.05)
        for name in (*one.CAMS, *one.FURTHER_CAMS)
    ),
    Comparison(
        f"{len(one.CAMS)} CAMs of one image from one pass / forward pass",
        of_one_image(one.forward),
        {OURS: of_one_image(one.our_cams_of_one_pass)},
        time_goal=1.3,
    ),
]

BACKWARD_COMPARISONS = [
    Comparison(
        "guided backpropagation / our gradient",
        once(one.our_gradient),
        {OURS: once(one.our_guided_backprop), **{name: once(peer) for name, peer in GUIDED_PEERS.items()}},
        time_goal=1.05,
    ),
    Comparison("gradient / forward and backward pass", one.forward_and_backward, {OURS: once(one.our_gradient)}),
    Comparison(
        "DeepLIFT / our gradient of the batch and its baselines",
        one.with_baselines(once(one.our_gradient)),
        {OURS: once(one.our_deep_lift)},
        time_goal=1.4,
    ),
    Comparison(
        "relevance propagation, epsilon plus / forward and backward pass",
        one.forward_and_backward,
        {OURS: once(one.our_relevance), "zennit": once(one.zennit_relevance)},
        time_goal=2.2,
    ),
    Comparison(
        "excitation backprop of one image at an earlier layer / our gradient there",
        one.earlier_gradient,
        {OURS: one.our_excitation_backprop},
        time_goal=1.35,
    ),
    Comparison(
        "contrastive excitation backprop of one image at an earlier layer / our gradient there",
        one.earlier_gradient,
        {OURS: one.our_contrastive_excitation_backprop},
        time_goal=1.6,
    ),
    Comparison(
        "TorchRay's excitation backprop of one image at an earlier layer / its gradient there",
        one.torchray_earlier_gradient,
        {
            "TorchRay": one.torchray_excitation_backprop,
            "TorchRay, contrastive": one.torchray_contrastive_excitation_backprop,
        },
    ),
    Comparison(
        "four methods of one shared pass / the four alone",
        many.four_methods_alone,
        {OURS: many.four_methods_of_one_pass},
        time_goal=0.75,
    ),
    Comparison("memory of a shared pass", many.nothing, {OURS: many.shared_pass}, megabytes_goal=102),
]

PATH_COMPARISONS = [
    Comparison(
        f"{many.STEPS} steps of integrated gradients at the layer / Captum's",
        many.captum_integrated_gradients(),
        {OURS: many.our_integrated_gradients()},
        time_goal=times_faster(15),
    ),
    Comparison(
        f"{many.STEPS} steps of integrated gradients at an earlier layer / Captum's",
        many.captum_integrated_gradients(earlier=True),
        {OURS: many.our_integrated_gradients(earlier=True)},
        time_goal=times_faster(4),
    ),
    Comparison(
        "memory of integrated gradients at an earlier layer, 5 steps at once / forward pass",
        of_one_image(one.forward),
        {OURS: many.our_integrated_gradients(earlier=True, at_once=5)},
        megabytes_goal=150,
    ),
    Comparison(
        f"{many.STEPS_OF_CONDUCTANCE} steps of conductance / Captum's",
        many.captum_conductance,
        {OURS: many.our_conductance},
        time_goal=1.0,
    ),
    Comparison("GradientSHAP / Captum's", many.captum_gradient_shap, {OURS: many.our_gradient_shap}, time_goal=1.0),
]

PERTURBATION_COMPARISONS = [
    Comparison(
        f"feature ablation of {many.CHANNELS} channels / Captum's, of which {many.PART} are measured",
        many.captum_feature_ablation_of_a_part,
        {OURS: many.our_feature_ablation},
        time_goal=times_faster(200),
        share=many.SHARE,
    ),
    Comparison(
        f"Ablation-CAM of {many.CHANNELS} channels / pytorch-grad-cam's, of which {many.PART} are measured",
        many.pytorch_grad_cam_ablation_cam_of_a_part,
        {OURS: many.our_ablation_cam},
        time_goal=times_faster(200),
        share=many.SHARE,
    ),
    Comparison(
        "Score-CAM of one image at a layer of few channels / forward passes of the masked images",
        many.channel_masked_forwards,
        {OURS: many.our_score_cam},
        time_goal=1.05,
    ),
    Comparison(
        f"RISE of one image, {many.MASKS} masks / forward passes of the masked images",
        many.masked_forwards,
        {OURS: many.our_rise, "TorchRay": many.torchray_rise},
        time_goal=1.05,
    ),
    Comparison(
        f"{many.ITERATIONS} iterations of extremal perturbations, {len(many.AREAS)} areas / "
        "passes of the perturbed images",
        many.perturbed_passes,
        {OURS: many.our_extremal_perturbation, "TorchRay": many.torchray_extremal_perturbation},
        time_goal=1.2,
    ),
]

ATTENTION_COMPARISONS = [
    Comparison(
        "attention rollout of a ViT / forward pass",
        one.forward,
        {OURS: vits.our_rollout},
        time_goal=1.10,
        workload=vits.with_vit(vits.BASE),
    ),
    Comparison(
        f"transformer attribution of {vits.CLASSES} classes of a ViT / as many gradients",
        vits.gradients_one_after_the_other,
        {OURS: vits.our_transformer_attribution_of_all_targets},
        time_goal=1.2,
        workload=vits.with_vit(vits.BASE),
    ),
    Comparison(
        f"transformer attribution of {vits.CLASSES} classes of a ViT / as many gradients from one forward pass",
        vits.gradients_of_one_forward_pass,
        {OURS: vits.our_transformer_attribution_of_all_targets},
        time_goal=1.2,
        workload=vits.with_vit(vits.BASE),
    ),
    # At 224 px of the workload's image these are 512 and 768 px: 1,025 and 2,305 tokens. The gradient alone shows what
    # autograd keeps of the layers between attentions: whatever needs gradients of all layers needs that too.
    *(
        Comparison(
            f"{name} of a ViT at {side}/7 of the image's side / transformer attribution with attention spelled out",
            vits.spelled_out,
            {OURS: ours, "a gradient alone": one.forward_and_backward},
            memory_goal=0.25,
            workload=vits.with_vit(vits.TINY, side / 7),
        )
        for side in (16, 24)
        for name, ours in (
            ("attention rollout", vits.our_rollout),
            ("transformer attribution", vits.our_transformer_attribution),
        )
    ),
]

SIDE = 32  # of an image on which a network computes so little that all that surrounds it shows, as on a GPU


def _overhead(
    name: str, baseline: Candidate, ours: Candidate, goal: float | None = None, **peers: one.Library
) -> Comparison:
    candidates = {OURS: ours, **{name: once(peer) for name, peer in peers.items()}}
    small = {name: of_one_image(candidate, SIDE) for name, candidate in candidates.items()}
    return Comparison(f"overhead at {SIDE} px: {name}", of_one_image(baseline, SIDE), small, goal)


OVERHEAD_COMPARISONS = [
    _overhead("Grad-CAM / forward pass", one.forward, once(one.our_grad_cam), 1.10, Captum=one.captum_grad_cam),
    _overhead(
        "Grad-CAM with no layer named / forward pass", one.forward, once(one.our_grad_cam_of_the_last_layer), 1.12
    ),
    # On so small an image the last layer with a grid is inside layer4, and its gradient is more than overhead. What the
    # name itself costs shows here.
    _overhead(
        "Grad-CAM with no layer named / at the layer that is found",
        once(one.our_grad_cam_at_the_found_layer),
        once(one.our_grad_cam_of_the_last_layer),
    ),
    _overhead(
        "guided backpropagation / autograd's gradient",
        one.forward_and_backward,
        once(one.our_guided_backprop),
        1.07,
        Captum=one.captum_guided_backprop,
    ),
    _overhead(
        "excitation backprop / autograd's gradient",
        one.forward_and_backward,
        once(one.our_excitation_backprop_at_its_own_layer),
        0.83,
    ),
]

COMPARISONS = [
    *GRAD_CAM_COMPARISONS,
    *CAM_COMPARISONS,
    *BACKWARD_COMPARISONS,
    *PATH_COMPARISONS,
    *PERTURBATION_COMPARISONS,
    *ATTENTION_COMPARISONS,
    *OVERHEAD_COMPARISONS,
]
