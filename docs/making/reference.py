"""The reference: a page for every chapter, written from METHODS, docstrings and examples when the site is built."""

import pydoc
from collections.abc import Iterable
from pathlib import Path

from docs.making.families import FAMILIES, Family
from docs.making.gallery import write
from saliency import METHODS

# Everything else that is public: (title, what it is for, names, of `saliency` where they have no dot).
CHAPTERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "driver": (
        "The driver",
        "What runs every gradient method, and the pieces that stand in it by default.",
        (
            *("saliency", "gradient_to_saliency", "get_backward_gradient", "get_pointing_gradient"),
            *("find_layer", "layer_candidates", "get_module", "Probe", "attach_debug_probes"),
            *("shared_forward", "SharedForward", "resize_saliency", "imsmooth", "METHODS", "Method"),
        ),
    ),
    "contexts": (
        "Contexts and rules",
        "How the backward pass runs: tables of rules for single operations.",
        (
            *("NullContext", "Patch", "ReLUContext", "RuleContext", "Pre", "Through", "Rule", "Instead"),
            *("GuidedBackpropContext", "DeConvNetContext", "ExcitationBackpropContext"),
            *("ContrastiveExcitationBackpropContext", "RelevanceContext", "DeepLiftContext", "FullGradientContext"),
            *("ShapleyContext", "completeness", "Completeness"),
            *("rules.epsilon", "rules.gamma", "rules.alpha_beta", "rules.z_plus", "rules.w_square", "rules.flat"),
            *("rules.z_box", "rules.identity", "rules.relevance_rules", "rules.epsilon_plus"),
            *("rules.epsilon_plus_flat", "rules.epsilon_alpha2_beta1", "rules.epsilon_alpha2_beta1_flat"),
            *("rules.epsilon_gamma_box", "rules.cp", "rules.attn_lrp", "rules.attn_plus", "rules.default_rules"),
            *("rules.excitation_rules", "rules.shares", "rules.PositivePart"),
        ),
    ),
    "walks": (
        "Paths and reductions",
        "Where gradients are taken, and what becomes of activation and gradient.",
        (
            *("line", "noise", "between", "Attribution", "max_channels", "sum_channels", "positive_sum"),
            *("gradient_to_contrastive_excitation_backprop_saliency", "gradient_to_excitation_backprop_saliency"),
            *("gradient_to_grad_cam_plus_plus_saliency", "gradient_to_grad_cam_saliency"),
            *("gradient_to_gradient_x_activation", "gradient_to_hires_cam_saliency"),
            *("gradient_to_layer_cam_saliency", "gradient_to_linear_approx_saliency"),
            *("gradient_to_xgrad_cam_saliency", "get_finer_gradient"),
        ),
    ),
    "wrappers": (
        "Wrappers",
        "A method of a method.",
        ("smooth_grad", "augmented", "Warp", "low_pass", "normalised", "fused"),
    ),
    "targets": (
        "Targets",
        "Functions of the output whose value is explained.",
        (
            *("targets.probability", "targets.log_odds", "targets.difference", "targets.total", "targets.entropy"),
            *("targets.class_in_region", "targets.box_score", "targets.box_coordinate", "targets.keypoint_score"),
            *("targets.detection_similarity", "targets.query_score"),
            *("cosine_similarity", "dot_product", "ImageEncoder", "bilrp"),
        ),
    ),
    "pieces": (
        "What methods are made of",
        "Masks, perturbations and rewards; attention as it is; concepts of a layer.",
        (
            *("rise", "random_masks", "extremal_perturbation", "Perturbation", "MaskGenerator", "simple_reward"),
            *("contrastive_reward", "BLUR_PERTURBATION", "FADE_PERTURBATION", "DELETE_VARIANT", "DUAL_VARIANT"),
            *("PRESERVE_VARIANT", "attention_maps", "AttentionMaps", "outlier_tokens", "deep_feature_factorization"),
        ),
    ),
    "pictures": (
        "Photos, pictures and networks",
        "From a file to a network's input, and from a map to a picture.",
        (
            *("explain", "compare", "Explanation", "networks.published.preprocessing_of"),
            *("images.read_image", "images.resize_image", "images.normalise", "images.display_range"),
            *("images.overlay", "images.to_picture", "images.write_png", "plot.show", "plot.contact_sheet"),
            *("networks.models.load_network", "networks.models.preprocessing", "networks.preprocessing.Preprocessing"),
            *("networks.names.find_class", "networks.own.import_network", "networks.preprocessing.preprocess"),
            *("scenes.make_scene", "scenes.make_scenes", "scenes.scene_network", "scenes.Scene"),
            *("scenes.SceneObject",),
        ),
    ),
    "evaluation": (
        "Evaluation",
        "Metrics of maps, and the runner.",
        (
            *("evaluation.metrics.Metric", "evaluation.metrics.localisation.pointing_game"),
            *("evaluation.metrics.localisation.energy_pointing_game", "evaluation.metrics.localisation.box_iou"),
            *("evaluation.metrics.localisation.mask_iou", "evaluation.metrics.localisation.max_box_accuracy"),
            *("evaluation.metrics.faithfulness.insertion", "evaluation.metrics.faithfulness.deletion"),
            *("evaluation.metrics.faithfulness.road", "evaluation.metrics.faithfulness.average_drop"),
            *("evaluation.metrics.faithfulness.increase_in_confidence",),
            *("evaluation.metrics.sensitivity.sensitivity_n",),
            *("evaluation.metrics.randomisation.parameter_randomisation",),
            *("evaluation.metrics.randomisation.random_logit", "evaluation.metrics.agreement.rank_correlation"),
            *("evaluation.running.runner.run", "evaluation.explainers.Explainer"),
        ),
    ),
    "torchray": (
        "For TorchRay's scripts",
        "The module ``saliency.torchray``: what they import besides the methods, which are in ``saliency`` itself.",
        (
            *("torchray.get_example_data", "torchray.plot_example"),
            *("torchray.PointingGame", "torchray.PointingGameBenchmark"),
        ),
    ),
}

# What has no docstring of its own.
DATA = {
    "METHODS": "The table of methods, ``name: Method``, which command line, tests and benchmarks read.",
    "BLUR_PERTURBATION": "``'blur'``: a :class:`Perturbation` that blurs what is not kept.",
    "FADE_PERTURBATION": "``'fade'``: a :class:`Perturbation` that fades what is not kept to black.",
    "PRESERVE_VARIANT": "``'preserve'``: the mask of :func:`extremal_perturbation` that keeps the score.",
    "DELETE_VARIANT": "``'delete'``: the mask without whose part of the image the score falls.",
    "DUAL_VARIANT": "``'dual'``: both at once.",
}


def write_reference(folder: Path) -> None:
    """Write the pages, where they changed."""
    for key, family in FAMILIES.items():
        write(folder / f"{key}.rst", methods_page(key, family))
    for key, (title, about, names) in CHAPTERS.items():
        write(folder / f"{key}.rst", "".join([heading(title), f"{about}\n\n", *map(entry, names)]))
    pages = "".join(f"   {key}\n" for key in (*FAMILIES, *CHAPTERS))
    about = (
        "Every method is ``method(model, input, target, saliency_layer=…, **options)``. "
        "The options that they have in common are those of :func:`saliency.saliency`.\n"
    )
    write(folder / "index.rst", f"{heading('Reference')}{about}\n.. toctree::\n   :maxdepth: 2\n\n{pages}")


def methods_page(key: str, family: Family) -> str:
    """A family: of every method its docstring, with formula and shapes, its paper, its example and the picture."""
    parts = [heading(family.title), family.about, "\n\n"]
    for name in family.methods:
        parts += [heading(name, "-"), entry(function(name)), f"Paper: {METHODS[name].paper}.\n\n"]
        parts += [picture(key, name), f".. literalinclude:: ../../examples/{name}.py\n   :lines: 3-\n\n"]
        by_hand = f"sphx_glr_gallery_{key}_{name}_manual.py"
        parts.append(f"The same written out by hand: :ref:`{by_hand}`.\n\n")
    return "".join(parts)


def function(name: str) -> str:
    """What a row of METHODS calls, by its public name."""
    return METHODS[name].function.__name__


def picture(key: str, name: str) -> str:
    """The picture that the example of a method makes in the gallery."""
    image = f"/gallery/{key}/images/sphx_glr_{name}_001.png"
    return f".. image:: {image}\n   :alt: {name} of an embedded scene\n   :class: map\n\n"


def entry(name: str) -> str:
    """The docstring of a public name."""
    if name in DATA:
        return f".. py:data:: saliency.{name}\n\n   {DATA[name]}\n\n"
    if not name.rpartition(".")[2][0].isupper():
        return f".. autofunction:: saliency.{name}\n\n"
    members = "" if hasattr(pydoc.locate(f"saliency.{name}"), "_fields") else "   :members:\n"  # fields need no entries
    return f".. autoclass:: saliency.{name}\n{members}\n"


def heading(title: str, line: str = "=") -> str:
    return f"{title}\n{line * len(title)}\n\n"


def names() -> Iterable[str]:
    """Every name that has an entry."""
    yield from (function(name) for family in FAMILIES.values() for name in family.methods)
    yield from (name for _, _, own in CHAPTERS.values() for name in own)
