"""Attention methods on transformers as libraries build them: untouched, fused and spelled out alike, or refused.

timm's and Hugging Face's run where those are installed.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import SwinTransformer, VisionTransformer

import saliency
from saliency.engine.attending import Attending
from tests import cases

pytestmark = cases.NOTICES  # where nothing raises the score, Grad-ECLIP's map is rightly zero

METHODS = [name for name, method in saliency.METHODS.items() if method.needs_attention]
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
_HF = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 64}
_HF |= {"image_size": 64, "patch_size": 16}


class Network(NamedTuple):
    """A network by fused and by spelled-out attention, how many attentions it has, its grid, and what is explained."""

    build: Callable[[bool], nn.Module]
    attentions: int
    grid: tuple[int, int] = (4, 4)
    shape: tuple[int, ...] = (3, 64, 64)
    target: Any = 1
    refused: tuple[str, ...] = ()


def _timm(name: str, attentions: int = 2, **options: Any) -> Network:
    shown = {key: options.pop(key) for key in ("grid", "shape") if key in options}

    def build(spelled: bool) -> nn.Module:
        timm = pytest.importorskip("timm")
        before = timm.layers.use_fused_attn()
        timm.layers.set_fused_attn(not spelled)
        try:
            return timm.create_model(name, pretrained=False, num_classes=5, **options)
        finally:
            timm.layers.set_fused_attn(bool(before))

    return Network(build, attentions, **shown)


def _hugging_face(name: str, config: str, options: dict[str, Any], attentions: int = 2, **shown: Any) -> Network:
    def build(spelled: bool) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        made = getattr(transformers, config)(**options)
        return getattr(transformers, name)._from_config(made, attn_implementation="eager" if spelled else "sdpa")

    return Network(build, attentions, **shown)


def _detr(spelled: bool) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    sizes = {f"{part}_{what}": value for part in ("encoder", "decoder") for what, value in _DETR.items()}
    options = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": 48}
    config = transformers.DetrConfig(backbone_config=backbone, num_queries=7, **options, **sizes)
    return transformers.DetrForObjectDetection(config)  # it has spelled-out attention alone


_DETR = {"layers": 2, "attention_heads": 3, "ffn_dim": 64}

NETWORKS = {
    "torchvision vit": Network(lambda spelled: VisionTransformer(64, 16, 2, 3, 48, 64, num_classes=5), 2),
    "timm vit": _timm("vit_tiny_patch16_224", img_size=64, **SMALL),
    "timm deit distilled": _timm("deit_tiny_distilled_patch16_224", img_size=64, **SMALL),
    "timm dinov2 reg4": _timm("vit_small_patch14_reg4_dinov2", img_size=56, shape=(3, 56, 56), **SMALL),
    "timm beit": _timm("beit_base_patch16_224", img_size=64, **SMALL),
    "timm eva02": _timm("eva02_tiny_patch14_224", img_size=56, shape=(3, 56, 56), **SMALL),
    "timm siglip": _timm("vit_base_patch16_siglip_224", 3, img_size=64, **SMALL),
    "timm naflexvit": _timm("naflexvit_base_patch16_gap", **SMALL),
    "timm cait": _timm("cait_xxs24_224", 4, img_size=64, **SMALL),
    "timm convit": _timm("convit_tiny", img_size=64, depth=2, embed_dim=12, num_heads=3, local_up_to_layer=1)._replace(
        refused=("legrad",)
    ),
    "ViT": _hugging_face("ViTForImageClassification", "ViTConfig", _HF),
    "DeiT": _hugging_face("DeiTForImageClassificationWithTeacher", "DeiTConfig", _HF),
    "DINOv2 with registers": _hugging_face(
        "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", _HF
    ),
    "BEiT": _hugging_face("BeitForImageClassification", "BeitConfig", _HF | {"use_relative_position_bias": True}),
    "CLIP": _hugging_face("CLIPForImageClassification", "CLIPConfig", {"vision_config": _HF}),
    "SigLIP": _hugging_face(
        "SiglipVisionModel", "SiglipVisionConfig", _HF, 3, target=lambda output: output.pooler_output[:, 1]
    ),
    "DETR": Network(_detr, 6, (3, 4), (3, 96, 128), (3, 2), ("attention_rollout", "legrad")),
}


def built(network: Network) -> tuple[nn.Module, nn.Module, Tensor]:
    """Fused and spelled out, with the same weights, of which none is zero; two images."""
    models = [network.build(spelled).double().eval() for spelled in (False, True)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in models[0].parameters():
            nn.init.normal_(parameter, std=0.2)
        models[1].load_state_dict(models[0].state_dict())
        return models[0], models[1], torch.randn(2, *network.shape).double()


def _marked(names: Iterable[str]) -> list[Any]:
    return [name if name.startswith("torchvision") else pytest.param(name, marks=pytest.mark.zoo) for name in names]


@pytest.mark.parametrize("name", _marked(NETWORKS))
def test_attentions_are_found_and_the_pass_is_what_it_was(name):
    network = NETWORKS[name]
    *models, x = built(network)
    for model in models:
        expected, attending = model(x.requires_grad_()), Attending(2)
        with attending.around(model), attending, attending.watch:
            output = model(x)
        pairs = zip(*([x for x in tree_leaves(of) if isinstance(x, Tensor)] for of in (output, expected)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert len(attending.found) == network.attentions


@pytest.mark.parametrize("name", _marked(NETWORKS))
def test_fused_and_spelled_out_are_the_same(name):
    network = NETWORKS[name]
    fused, spelled, x = built(network)
    for method in METHODS:
        function = saliency.METHODS[method].function
        if method in network.refused:
            with pytest.raises(ValueError, match=r"^model=\w+ has (cross attention|16 tokens, .*) in layer '.*'.*\.$"):
                function(fused, x, network.target)
            continue
        found = function(fused, x, network.target)
        assert found.shape == (2, 1, *network.grid)
        assert found.abs().max() > 0 or method == "grad_eclip"
        expected = function(spelled, x, network.target)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "torchvision swin": (
        lambda: SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=5),
        (3, 64, 64),
        "attends within windows or other parts of an image, of 4 tokens,",
    ),
    **{
        name: (
            lambda name=name, options=options: pytest.importorskip("timm").create_model(
                name, pretrained=False, num_classes=5, **options
            ),
            shape,
            words,
        )
        for name, options, shape, words in (
            ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "num_heads": (3, 6)}, (3, 224, 224), "within windows"),
            ("maxvit_nano_rw_256", {}, (3, 256, 256), "within windows"),
            ("mvitv2_tiny", {}, (3, 224, 224), "pools its keys, 196 for 3136 queries,"),
            ("xcit_nano_12_p16_224", {"depth": 2}, (3, 224, 224), "attends to 32 channels, not to tokens,"),
            ("pvt_v2_b0", {}, (3, 224, 224), "pools its keys, 49 for 3136 queries,"),
            ("pit_ti_224", {}, (3, 224, 224), "has 197 queries of 197 tokens, where there were 730,"),
            ("levit_128s", {}, (3, 224, 224), "has 49 queries of 196 tokens, where there were 196,"),
        )
    },
}


@pytest.mark.parametrize("name", _marked(REFUSED))
def test_what_is_no_chain_is_refused_with_the_reason(name):
    build, shape, words = REFUSED[name]
    model = build().eval()
    for method in ("attention_rollout", "transformer_attribution"):
        with pytest.raises(ValueError, match=rf"^model=\w+ .*{words}.* in layer '.*', .*; expected .*\.$"):
            saliency.METHODS[method].function(model, torch.randn(1, *shape), 1)
