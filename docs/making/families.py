"""The chapters of the reference and of the gallery: which names belong together."""

from typing import NamedTuple

from saliency import METHODS


class Family(NamedTuple):
    """Methods that are made alike, as they are called in the files of ``saliency.methods``."""

    title: str
    about: str
    modules: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """The names in METHODS, in its order."""
        return [name for name, row in METHODS.items() if row.function.__module__.split(".")[2] in self.modules]


FAMILIES = {
    "gradients": Family(
        "Gradients",
        "One backward pass: how the score reacts to an activation, and what that makes of it.",
        ("gradients", "relu_backprop", "full_gradient"),
    ),
    "cams": Family(
        "Class activation maps",
        "A layer's channels, each weighed by its gradient and added up.",
        ("cam", "pooled_cam", "components", "cam_gradients", "fused_cam"),
    ),
    "relevance": Family(
        "Relevance and excitation",
        "The score, or a probability, handed down operation by operation by rules that conserve it.",
        ("excitation", "relevance"),
    ),
    "paths": Family(
        "Paths and differences",
        "Gradients gathered on the way from a baseline, over noise, or replaced by quotients of differences.",
        ("paths", "differences"),
    ),
    "perturbations": Family(
        "Perturbations",
        "No gradient: what becomes of the score when a part of the image, or of a layer, is taken away.",
        ("ablation", "scored_cam", "masking", "extremal"),
    ),
    "attention": Family(
        "Attention",
        "What a transformer's tokens attend to, alone or together with the gradient.",
        ("attention", "attention_gradients"),
    ),
}
# Examples that are no row of METHODS.
MORE = {"deep_feature_factorization": "cams", "fused": "cams", "smooth_grad": "gradients"}


def family_of(example: str) -> str:
    """The chapter of an example, by its method.

    >>> family_of("grad_cam"), family_of("fused")
    ('cams', 'cams')
    """
    return MORE.get(example) or next(key for key, family in FAMILIES.items() if example in family.methods)
