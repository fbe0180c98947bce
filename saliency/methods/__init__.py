"""WHAT: the methods, and the table of contents that command line, tests and benchmarks read."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import NamedTuple

from saliency.engine.driver import saliency
from saliency.engine.signatures import Maps
from saliency.methods.ablation import feature_ablation, feature_permutation, occlusion
from saliency.methods.cam import grad_cam, grad_cam_plus_plus, hires_cam, layer_cam, xgrad_cam
from saliency.methods.differences import deep_lift, deep_lift_shap
from saliency.methods.excitation import contrastive_excitation_backprop, excitation_backprop
from saliency.methods.extremal import extremal_perturbation, extremal_perturbation_map
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
from saliency.methods.relu_backprop import deconvnet, guided_backprop, guided_grad_cam
from saliency.methods.scored_cam import ablation_cam, is_cam, recipro_cam, score_cam, ss_cam


class Method(NamedTuple):
    """A row of the table: ``function(model, input, target, **options)``, which gives maps, and where it comes from."""

    function: Callable[..., Maps]
    paper: str
    engine: Callable[..., object] = saliency  # what the function hands further options to
    sets: tuple[str, ...] = ()  # the options of the engine that are the method's own matter

    @property
    def options(self) -> frozenset[str]:
        """The names of all that can be passed, to the function or to what it hands options to, after the target."""
        own, handed = (_names(of) for of in (self.function, self.engine))
        return (own | (handed - {*self.sets})) - {"model", "input", "target"}


def _names(function: Callable[..., object]) -> frozenset[str]:
    """The names of the parameters that can be passed by name."""
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return frozenset(name for name, parameter in signature(function).parameters.items() if parameter.kind in by_name)


_REDUCES = ("gradient_to_saliency",)
_WALKS = ("gradient_to_saliency", "path")
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
        sets=(*_REDUCES, "get_backward_gradient"),
    ),
    "deconvnet": Method(deconvnet, "Zeiler and Fergus, Visualizing Convolutional Networks, ECCV 2014"),
    "guided_backprop": Method(guided_backprop, "Springenberg et al., Striving for Simplicity, ICLR workshop 2015"),
    "guided_grad_cam": Method(guided_grad_cam, "Selvaraju et al., Grad-CAM, ICCV 2017", sets=_REDUCES),
    "excitation_backprop": Method(excitation_backprop, "Zhang et al., Excitation Backprop, ECCV 2016"),
    "contrastive_excitation_backprop": Method(
        contrastive_excitation_backprop, "Zhang et al., Excitation Backprop, ECCV 2016", sets=("context_builder",)
    ),
    "grad_cam": Method(grad_cam, "Selvaraju et al., Grad-CAM, ICCV 2017", sets=_REDUCES),
    "grad_cam_plus_plus": Method(grad_cam_plus_plus, "Chattopadhay et al., Grad-CAM++, WACV 2018", sets=_REDUCES),
    "layer_cam": Method(layer_cam, "Jiang et al., LayerCAM, TIP 2021", sets=_REDUCES),
    "xgrad_cam": Method(xgrad_cam, "Fu et al., Axiom-based Grad-CAM, BMVC 2020", sets=_REDUCES),
    "hires_cam": Method(hires_cam, "Draelos and Carin, HiResCAM, 2020", sets=_REDUCES),
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
    "rise": Method(rise_class, "Petsiuk et al., RISE, BMVC 2018", rise_class),
    "extremal_perturbation": Method(
        extremal_perturbation_map, "Fong et al., Extremal Perturbations, ICCV 2019", extremal_perturbation
    ),
}
