"""The methods, and their table of contents, which the command line, the tests and the benchmarks read."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import NamedTuple

from saliency.engine.driver import saliency
from saliency.engine.signatures import Maps
from saliency.methods.ablation import feature_ablation, feature_permutation, occlusion
from saliency.methods.attention import (
    attention_rollout,
    gradient_attention,
    raw_attention,
    transformer_attribution,
)
from saliency.methods.attention_gradients import grad_eclip, legrad
from saliency.methods.cam import grad_cam, grad_cam_plus_plus, hires_cam, layer_cam, xgrad_cam
from saliency.methods.cam_gradients import finer_cam, shapley_cam, smooth_grad_cam_plus_plus
from saliency.methods.components import eigen_cam, eigen_grad_cam, fem, kpca_cam
from saliency.methods.differences import deep_lift, deep_lift_shap
from saliency.methods.excitation import contrastive_excitation_backprop, excitation_backprop
from saliency.methods.extremal import extremal_perturbation, extremal_perturbation_map
from saliency.methods.full_gradient import full_grad
from saliency.methods.fused_cam import refine_cam
from saliency.methods.gradients import activation, gradient, gradient_x_activation, linear_approx
from saliency.methods.masking import rise_class
from saliency.methods.paths import (
    conductance,
    expected_gradients,
    gradient_shap,
    integrated_gradients,
    internal_influence,
    smooth_gradient,
)
from saliency.methods.perturbing import explain
from saliency.methods.pooled_cam import cam
from saliency.methods.relevance import lrp
from saliency.methods.relu_backprop import deconvnet, guided_backprop, guided_grad_cam
from saliency.methods.scored_cam import ablation_cam, is_cam, recipro_cam, score_cam, ss_cam
from saliency.methods.tokens import explain_tokens


class Method(NamedTuple):
    """A row of the table: ``function(model, input, target, **options)``, which returns maps, and its paper."""

    function: Callable[..., Maps]
    paper: str
    engine: Callable[..., object] = saliency  # what the function forwards further options to
    sets: tuple[str, ...] = ()  # options of the engine that the method sets itself
    needs_pooling: bool = False  # it explains only networks that pool a layer and classify the means

    @property
    def needs_attention(self) -> bool:
        """Whether it explains only networks with attention."""
        return self.engine is explain_tokens

    @property
    def is_for_some(self) -> bool:
        """Whether it applies only to networks of a certain architecture."""
        return self.needs_attention or self.needs_pooling

    @property
    def options(self) -> frozenset[str]:
        """The names of all options, of the function itself and of what it forwards options to."""
        own, handed = (_names(of) for of in (self.function, self.engine))
        return (own | (handed - {*self.sets})) - {"model", "input", "target"}


def _names(function: Callable[..., object]) -> frozenset[str]:
    """The names of the parameters that can be passed by name."""
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return frozenset(name for name, parameter in signature(function).parameters.items() if parameter.kind in by_name)


_REDUCES = ("gradient_to_saliency",)
_WALKS = ("gradient_to_saliency", "path")
_READS = ("gradient_to_saliency", "get_backward_gradient")
_SENDS = ("gradient_to_saliency", "context_builder")
_COMPARES = (*_WALKS, "context_builder")

METHODS: dict[str, Method] = {
    "gradient": Method(gradient, "Simonyan et al., Deep Inside Convolutional Networks, ICLR workshop 2014"),
    "gradient_x_activation": Method(
        gradient_x_activation, "Shrikumar et al., Not Just a Black Box, 2016", sets=_REDUCES
    ),
    "linear_approx": Method(
        linear_approx, "Kindermans et al., Investigating the Influence of Noise, 2016", sets=_REDUCES
    ),
    "activation": Method(
        activation,
        "Zeiler and Fergus, Visualizing Convolutional Networks, ECCV 2014",
        sets=_READS,
    ),
    "deconvnet": Method(deconvnet, "Zeiler and Fergus, Visualizing Convolutional Networks, ECCV 2014"),
    "guided_backprop": Method(guided_backprop, "Springenberg et al., Striving for Simplicity, ICLR workshop 2015"),
    "guided_grad_cam": Method(guided_grad_cam, "Selvaraju et al., Grad-CAM, ICCV 2017", sets=_REDUCES),
    "excitation_backprop": Method(excitation_backprop, "Zhang et al., Excitation Backprop, ECCV 2016"),
    "contrastive_excitation_backprop": Method(
        contrastive_excitation_backprop, "Zhang et al., Excitation Backprop, ECCV 2016", sets=("context_builder",)
    ),
    "lrp": Method(lrp, "Bach et al., On Pixel-Wise Explanations, PLOS ONE 2015", sets=("context_builder", *_REDUCES)),
    "grad_cam": Method(grad_cam, "Selvaraju et al., Grad-CAM, ICCV 2017", sets=_REDUCES),
    "grad_cam_plus_plus": Method(grad_cam_plus_plus, "Chattopadhay et al., Grad-CAM++, WACV 2018", sets=_REDUCES),
    "layer_cam": Method(layer_cam, "Jiang et al., LayerCAM, TIP 2021", sets=_REDUCES),
    "xgrad_cam": Method(xgrad_cam, "Fu et al., Axiom-based Grad-CAM, BMVC 2020", sets=_REDUCES),
    "hires_cam": Method(hires_cam, "Draelos and Carin, HiResCAM, 2020", sets=_REDUCES),
    "cam": Method(cam, "Zhou et al., Learning Deep Features, CVPR 2016", sets=_SENDS, needs_pooling=True),
    "eigen_cam": Method(eigen_cam, "Muhammad and Yeasin, Eigen-CAM, IJCNN 2020", sets=_READS),
    "eigen_grad_cam": Method(eigen_grad_cam, "Gildenblat et al., pytorch-grad-cam, 2021", sets=_REDUCES),
    "kpca_cam": Method(kpca_cam, "Karmani et al., KPCA-CAM, 2024", sets=_READS),
    "fem": Method(fem, "Ahmed Asif Fuad et al., Features Understanding in 3D CNNs, IPTA 2020", sets=_READS),
    "finer_cam": Method(finer_cam, "Zhang et al., Finer-CAM, CVPR 2025", sets=_READS),
    "shapley_cam": Method(shapley_cam, "Cai, CAMs as Shapley Value-based Explainers, 2025", sets=_REDUCES),
    "smooth_grad_cam_plus_plus": Method(
        smooth_grad_cam_plus_plus, "Omeiza et al., Smooth Grad-CAM++, 2019", sets=_WALKS
    ),
    "refine_cam": Method(refine_cam, "How to Evaluate and Refine your CAM, 2026", sets=_REDUCES),
    "full_grad": Method(full_grad, "Srinivas and Fleuret, Full-Gradient Representation, NeurIPS 2019", sets=_SENDS),
    "integrated_gradients": Method(
        integrated_gradients, "Sundararajan et al., Axiomatic Attribution, ICML 2017", sets=_WALKS
    ),
    "internal_influence": Method(
        internal_influence, "Leino et al., Influence-Directed Explanations, ITC 2018", sets=_WALKS
    ),
    "conductance": Method(conductance, "Dhamdhere et al., How Important Is a Neuron?, ICLR 2019", sets=_WALKS),
    "gradient_shap": Method(gradient_shap, "Lundberg and Lee, A Unified Approach, NeurIPS 2017", sets=_WALKS),
    "expected_gradients": Method(
        expected_gradients, "Erion et al., Expected Gradients, Nature Machine Intelligence 2021", sets=_WALKS
    ),
    "deep_lift": Method(deep_lift, "Shrikumar et al., Learning Important Features, ICML 2017", sets=_COMPARES),
    "deep_lift_shap": Method(deep_lift_shap, "Lundberg and Lee, A Unified Approach, NeurIPS 2017", sets=_COMPARES),
    "smooth_gradient": Method(smooth_gradient, "Smilkov et al., SmoothGrad, 2017", sets=_WALKS),
    "feature_ablation": Method(feature_ablation, "Zeiler and Fergus, Visualizing, ECCV 2014", explain),
    "feature_permutation": Method(feature_permutation, "Breiman, Random Forests, Machine Learning 2001", explain),
    "occlusion": Method(occlusion, "Zeiler and Fergus, Visualizing Convolutional Networks, ECCV 2014", explain),
    "score_cam": Method(score_cam, "Wang et al., Score-CAM, CVPR workshop 2020", explain),
    "ss_cam": Method(ss_cam, "Wang et al., SS-CAM, 2020", explain),
    "is_cam": Method(is_cam, "Naidu et al., IS-CAM, 2020", explain),
    "ablation_cam": Method(ablation_cam, "Desai and Ramaswamy, Ablation-CAM, WACV 2020", explain),
    "recipro_cam": Method(recipro_cam, "Byun and Lee, Recipro-CAM, 2022", explain),
    "raw_attention": Method(raw_attention, "Bahdanau et al., Jointly Learning to Align, ICLR 2015", explain_tokens),
    "attention_rollout": Method(
        attention_rollout, "Abnar and Zuidema, Quantifying Attention Flow, ACL 2020", explain_tokens
    ),
    "gradient_attention": Method(
        gradient_attention, "Serrano and Smith, Is Attention Interpretable?, ACL 2019", explain_tokens
    ),
    "transformer_attribution": Method(
        transformer_attribution, "Chefer et al., Generic Attention-model Explainability, ICCV 2021", explain_tokens
    ),
    "legrad": Method(legrad, "Bousselham et al., LeGrad, 2024", explain_tokens),
    "grad_eclip": Method(grad_eclip, "Zhao et al., Gradient-based Explanation for CLIP, ICML 2024", explain_tokens),
    "rise": Method(rise_class, "Petsiuk et al., RISE, BMVC 2018", rise_class),
    "extremal_perturbation": Method(
        extremal_perturbation_map, "Fong et al., Extremal Perturbations, ICCV 2019", extremal_perturbation
    ),
}
