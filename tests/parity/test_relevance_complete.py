"""Relevance is complete on architectures as they are: torchvision's families, timm's and Hugging Face's transformers.

Every network meets every preset once, at the input or at one of three layers that all paths cross, in turn: by name,
or in Hugging Face's networks by role, since the versions of the library name them differently.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from saliency import completeness, rules
from tests.cases import Net

pytestmark = pytest.mark.parity

PRESETS = {
    **{name: getattr(rules, name)() for name in ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1")},
    "epsilon_alpha2_beta1_flat": rules.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": rules.epsilon_gamma_box(-4, 4),
    "cp": rules.cp(),
}


Cuts: TypeAlias = tuple[str, str, str]


class Network(NamedTuple):
    build: Callable[[], nn.Module]
    size: int
    cuts: Cuts | Callable[[nn.Module], Cuts]


def named(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
        for part in (model, getattr(model, "classifier", None)):  # of 4096 hidden units: few, which are as good
            if isinstance(part, (torchvision.models.AlexNet, torchvision.models.VGG)):
                part.avgpool = nn.AdaptiveAvgPool2d(1)
                channels = [m for m in part.features if isinstance(m, nn.Conv2d)][-1].out_channels
                part.classifier = nn.Sequential(nn.Linear(channels, 32), nn.ReLU(True), nn.Linear(32, 10))
        return model

    return build


_SWIN = ([4, 4], 24, [2, 2], [2, 4], [4, 4])
_V2 = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
_MAXVIT = {"stem_channels": 16, "partition_size": 4, "block_channels": [16, 32], "block_layers": [1, 1], "head_dim": 8}
TORCHVISION = {
    "alexnet": Network(named("alexnet"), 64, ("features.2", "features.9", "classifier.0")),
    "vgg11_bn": Network(named("vgg11_bn"), 32, ("features.0", "features.13", "classifier.0")),
    "resnet18": Network(named("resnet18"), 32, ("conv1", "layer2", "layer4")),
    "squeezenet1_1": Network(named("squeezenet1_1"), 32, ("features.0", "features.5", "features.12")),
    "densenet121": Network(named("densenet121"), 32, ("features.conv0", "features.transition1", "features.norm5")),
    "googlenet": Network(
        named("googlenet", aux_logits=False, init_weights=False), 32, ("conv1", "inception4a", "avgpool")
    ),
    "inception_v3": Network(named("inception_v3", init_weights=False), 75, ("Conv2d_1a_3x3", "Mixed_5d", "avgpool")),
    "shufflenet_v2_x0_5": Network(named("shufflenet_v2_x0_5"), 32, ("conv1", "stage2", "conv5")),
    "mobilenet_v2": Network(named("mobilenet_v2"), 32, ("features.0", "features.8", "features.18")),
    "mobilenet_v3_small": Network(named("mobilenet_v3_small"), 32, ("features.0", "features.5", "features.12")),
    "mnasnet0_5": Network(named("mnasnet0_5"), 32, ("layers.0", "layers.8", "layers.16")),
    "regnet_y_400mf": Network(named("regnet_y_400mf"), 32, ("stem", "trunk_output.block2", "avgpool")),
    "efficientnet_b0": Network(named("efficientnet_b0"), 32, ("features.0", "features.4", "features.8")),
    "convnext_tiny": Network(named("convnext_tiny"), 32, ("features.0", "features.3", "features.7")),
    "vit": Network(
        lambda: VisionTransformer(32, 8, 3, 4, 24, 48, num_classes=10),
        *(32, ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1", "encoder.ln")),
    ),
    "swin": Network(lambda: SwinTransformer(*_SWIN, num_classes=10), 32, ("features.0", "features.1", "norm")),
    "swin_v2": Network(
        lambda: SwinTransformer(*_SWIN, num_classes=10, **_V2), 32, ("features.0", "features.1", "norm")
    ),
    "maxvit": Network(
        lambda: MaxVit((64, 64), **_MAXVIT, stochastic_depth_prob=0.0), 64, ("stem", "blocks.0", "blocks.1")
    ),
}


def timm(name: str, size: int, cuts: Cuts, **options: object) -> Network:
    def build() -> nn.Module:
        return pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=10, **options)

    return Network(build, size, cuts)


_SMALL = {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 4}
_BLOCKS = ("blocks.0", "blocks.1", "norm")
_STAGES = ("patch_embed", "layers.0", "norm")
TIMM = {
    "vit": timm("vit_tiny_patch16_224", 32, _BLOCKS, **_SMALL),
    "deit, distilled": timm("deit_tiny_distilled_patch16_224", 32, _BLOCKS, **_SMALL),
    "dinov2, registers": timm("vit_small_patch14_reg4_dinov2", 42, _BLOCKS, **_SMALL | {"img_size": 42}),
    "siglip": timm("vit_base_patch16_siglip_224", 32, _BLOCKS, **_SMALL),
    "beit": timm("beit_base_patch16_224", 32, ("patch_embed", "blocks.0", "blocks.1"), **_SMALL),
    "eva02": timm("eva02_tiny_patch14_224", 42, ("patch_embed", "blocks.0", "blocks.1"), img_size=42, depth=3),
    "cait": timm("cait_xxs24_224", 32, _BLOCKS, **_SMALL),
    "naflexvit": timm("naflexvit_base_patch16_gap", 32, _BLOCKS, depth=3, embed_dim=48, num_heads=4),
    "swin": timm(
        "swin_tiny_patch4_window7_224", 56, _STAGES, img_size=56, depths=(1, 2), embed_dim=24, num_heads=(2, 4)
    ),
    "swinv2": timm("swinv2_tiny_window8_256", 64, _STAGES, img_size=64, depths=(1, 2), embed_dim=24, num_heads=(2, 4)),
    "convnextv2": timm("convnextv2_atto", 64, ("stem", "stages.1", "stages.3")),
    "resnet, attention pooling": timm("resnet50_clip", 64, ("stem", "stages.1", "stages.3")),
}


def hugging_face(
    kind: str, cuts: Cuts | Callable[[nn.Module], Cuts], task: str = "ForImageClassification", **options: object
) -> Network:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        config = getattr(transformers, f"{kind}Config")(image_size=32, num_labels=10, **options)
        model = getattr(transformers, f"{kind}{task}")(config)

        def scores(s: nn.Module, x: Tensor) -> Tensor:
            output = s.m(pixel_values=x)
            return next(output[name] for name in ("logits", "image_embeds", "pooler_output") if name in output)

        return Net(scores, m=model)

    return Network(build, 32, cuts)


def blocks_and(norm: str | None) -> Callable[[nn.Module], Cuts]:
    """The first two blocks, and the first norm of that name; or the last block, where the norm sees one token alone."""

    def cuts(model: nn.Module) -> Cuts:
        modules = dict(model.named_modules())
        first, second, last = next(
            [f"{name}.{number}" for number in range(_VIT["num_hidden_layers"])]
            for name, module in modules.items()
            if isinstance(module, nn.ModuleList) and len(module) == _VIT["num_hidden_layers"]
        )
        return first, second, last if norm is None else next(name for name in modules if name.endswith(f".{norm}"))

    return cuts


_VIT = {"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_MLP = {**_VIT, "intermediate_size": 64}
_WINDOWS = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
HUGGING_FACE = {
    f"{name}, {attention or 'as it is'}": hugging_face(*arguments, attn_implementation=attention, **options)
    for attention in (None, "eager")  # by default fused, where the version has that
    for name, arguments, options in (
        ("ViT", ("ViT", blocks_and("layernorm")), _MLP),
        ("DeiT", ("DeiT", blocks_and("layernorm"), "ForImageClassificationWithTeacher"), _MLP),
        ("DINOv2", ("Dinov2WithRegisters", blocks_and("layernorm")), _VIT),
        ("BEiT", ("Beit", blocks_and(None)), _MLP),
        ("CLIP", ("CLIPVision", blocks_and(None), "ModelWithProjection"), _MLP),
        ("SigLIP", ("SiglipVision", blocks_and("post_layernorm"), "Model"), _MLP),
        ("Swin", ("Swin", ("m.swin.embeddings.dropout", "m.swin.encoder", "m.swin.layernorm")), _WINDOWS),
    )
}


def calibrated(network: Network) -> tuple[nn.Module, Tensor]:
    """The network with biases that are not 0, and batch norms with the statistics of a batch; and an image of it."""
    model, generator = network.build().double().eval().requires_grad_(False), torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not parameter.any():
            parameter.normal_(1.0 if name.endswith("weight") else 0.1, 0.1, generator=generator)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    batch = torch.randn(4, 3, network.size, network.size, generator=generator, dtype=torch.float64)
    for module in norms:
        module.momentum = None
        module.reset_running_stats()
        module.train()
    if norms:
        model(batch)
    return model.eval(), batch[:1]


OF_ZOO = {
    **{f"timm {n}": of for n, of in TIMM.items()},
    **{f"HF {n}": of for n, of in HUGGING_FACE.items()},
}
NETWORKS = TORCHVISION | OF_ZOO


@pytest.mark.parametrize("name", [*TORCHVISION, *(pytest.param(name, marks=pytest.mark.zoo) for name in OF_ZOO)])
def test_every_preset(name):
    network = NETWORKS[name]
    model, image = calibrated(network)
    layers = ("", *(network.cuts(model) if callable(network.cuts) else network.cuts))
    for turn, (preset, table) in enumerate(PRESETS.items(), list(NETWORKS).index(name)):
        layer = layers[turn % len(layers)]
        parts = completeness(model, image, 3, layer, table)
        scale = max(abs(parts.score), abs(parts.attribution) + abs(parts.bias) + abs(parts.lost))
        assert abs(parts.rest) < 1e-9 * scale, (preset, layer, parts)
