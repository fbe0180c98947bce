"""The networks of the sweep: of installed libraries, with random weights, each with the size of its input."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

IMAGE = (3, 224, 224)
_BLOCKS = {"num_hidden_layers": 2, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 192}


class Network(NamedTuple):
    """How to build a network, the shape of one sample of its input, and what to explain of its output."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    target: Any = 1


# The smallest size of each family; all sizes are torchvision's own list.
TORCHVISION = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11"),
    *("vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "mvit_v2_s")
CLIPS = {"s3d": (16, 224), "swin3d_t": (8, 224), "mvit_v2_s": (16, 224)}  # frames, side
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")

TIMM = (
    *("vit_tiny_patch16_224", "vit_base_patch32_siglip_gap_256", "vit_pe_core_tiny_patch16_384"),
    *("vit_small_patch14_reg4_dinov2", "vit_relpos_small_patch16_224", "naflexvit_base_patch16_gap"),
    *("deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224", "beitv2_base_patch16_224"),
    *("eva02_tiny_patch14_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "volo_d1_224", "pit_ti_224"),
    *("pit_ti_distilled_224", "coat_tiny", "coat_lite_tiny", "coatnet_0_rw_224", "crossvit_tiny_240", "convit_tiny"),
    *("levit_128s", "mvitv2_tiny", "hiera_tiny_224", "pvt_v2_b0", "twins_pcpvt_small", "twins_svt_small"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224", "focalnet_tiny_srf"),
    *("maxvit_nano_rw_256", "maxxvit_rmlp_nano_rw_256", "tiny_vit_5m_224", "efficientformer_l1", "efficientvit_b0"),
    *("edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050", "fastvit_t8", "repvit_m0_9", "nest_tiny", "davit_tiny"),
    *("gcvit_xxtiny", "poolformer_s12", "caformer_s18", "convformer_s18", "mixer_s16_224", "resmlp_12_224"),
    *("gmlp_ti16_224", "sequencer2d_s", "convmixer_768_32", "convnext_atto", "convnextv2_atto", "visformer_tiny"),
    *("efficientnet_b0", "tf_efficientnetv2_b0", "mobilenetv4_conv_small", "ghostnet_100", "rexnet_100"),
    *("hrnet_w18_small", "hgnetv2_b0"),
    *("repvgg_a0", "resnet26d", "resnetv2_50", "nfnet_f0", "regnety_002", "res2net50_26w_4s", "resnest14d", "dla34"),
    *("dpn48b", "cspresnet50", "darknet53", "vovnet39a", "xception41", "inception_next_tiny", "starnet_s1"),
    *("mambaout_femto", "tresnet_m", "selecsls42b", "nextvit_small"),
)

# model class: (config class, options of the config, shape of a sample, target); the classes' own names without these
HUGGING_FACE: dict[str, tuple[str, dict[str, Any], tuple[int, ...], Any]] = {
    "ViTForImageClassification": ("ViTConfig", _BLOCKS, IMAGE, 1),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", _BLOCKS, IMAGE, 1),
    "BeitForImageClassification": ("BeitConfig", _BLOCKS, IMAGE, 1),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", _BLOCKS, IMAGE, 1),
    "Dinov2ForImageClassification": ("Dinov2Config", _BLOCKS, IMAGE, 1),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", _BLOCKS, IMAGE, 1),
    "IJepaForImageClassification": ("IJepaConfig", _BLOCKS, IMAGE, 1),
    "ViTMSNForImageClassification": ("ViTMSNConfig", _BLOCKS, IMAGE, 1),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": _BLOCKS}, IMAGE, 1),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": _BLOCKS}, IMAGE, 1),
    "SwinForImageClassification": (
        "SwinConfig",
        {"embed_dim": 128, "depths": [2, 2, 2, 2], "num_heads": [4, 8, 16, 32]},
        IMAGE,
        1,
    ),
    "Swinv2ForImageClassification": ("Swinv2Config", {"depths": [2, 2, 2, 2], "window_size": 7}, IMAGE, 1),
    "FocalNetForImageClassification": ("FocalNetConfig", {"depths": [2, 2, 2, 2]}, IMAGE, 1),
    "CvtForImageClassification": ("CvtConfig", {"depth": [1, 2, 3]}, IMAGE, 1),
    "PvtForImageClassification": ("PvtConfig", {}, IMAGE, 1),
    "PvtV2ForImageClassification": ("PvtV2Config", {}, IMAGE, 1),
    "SegformerForImageClassification": ("SegformerConfig", {}, IMAGE, 1),
    "SegformerForSemanticSegmentation": ("SegformerConfig", {"num_labels": 4}, IMAGE, 1),
    "HieraForImageClassification": ("HieraConfig", {}, IMAGE, 1),
    "LevitForImageClassification": ("LevitConfig", {}, IMAGE, 1),
    "MobileViTForImageClassification": ("MobileViTConfig", {}, (3, 256, 256), 1),
    "PoolFormerForImageClassification": ("PoolFormerConfig", {}, IMAGE, 1),
    "ConvNextForImageClassification": ("ConvNextConfig", {}, IMAGE, 1),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", {}, IMAGE, 1),
    "ResNetForImageClassification": ("ResNetConfig", {}, IMAGE, 1),
    "RegNetForImageClassification": ("RegNetConfig", {}, IMAGE, 1),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {}, IMAGE, 1),
    "EfficientNetForImageClassification": ("EfficientNetConfig", {}, IMAGE, 1),
    "YolosForObjectDetection": ("YolosConfig", {**_BLOCKS, "image_size": [224, 224]}, IMAGE, (3, 2)),
    "DetrForObjectDetection": (
        "DetrConfig",
        {"use_timm_backbone": False, "use_pretrained_backbone": False, "encoder_layers": 2, "decoder_layers": 2},
        IMAGE,
        (3, 2),
    ),
    "ASTForAudioClassification": ("ASTConfig", _BLOCKS, (1024, 128), 1),
    "VideoMAEForVideoClassification": ("VideoMAEConfig", _BLOCKS, (16, 3, 224, 224), 1),
    "DPTForSemanticSegmentation": ("DPTConfig", {"num_hidden_layers": 12}, (3, 384, 384), 1),
}


def networks(library: str, **options: Any) -> Iterator[tuple[str, Network]]:
    """The networks of one of :data:`LIBRARIES`, by name. Raises ``ModuleNotFoundError`` where it is not installed."""
    yield from LIBRARIES[library](import_module(library), **options)


def _torchvision(library: Any, every_size: bool = False, side: int | None = None) -> Iterator[tuple[str, Network]]:
    """Classifiers of the smallest size, or of all; and, where they are not meant alone, segmenters and videos."""
    every = library.models.list_models(module=library.models)
    yield from classifiers(library, every if every_size else TORCHVISION, side)
    if every_size or side is not None:
        return
    build: Callable[..., nn.Module] = library.models.get_model
    for name in SEGMENTATION:
        yield name, Network(partial(build, name, weights=None, weights_backbone=None))
    for name in VIDEO:
        frames, length = CLIPS.get(name, (16, 112))
        yield name, Network(partial(build, name, weights=None), (3, frames, length, length))


def classifiers(library: Any, names: Iterable[str], side: int | None = None) -> Iterator[tuple[str, Network]]:
    """Classifiers of torchvision for images of their own size, or of ``side`` pixels, a multiple of 32.

    Inception, whose border takes 43 pixels, gets those more; MaxViT's windows are a 32nd of the side, as at 224 pixels.
    """
    build: Callable[..., nn.Module] = library.models.get_model
    for name in names:
        size = side or (256 if name == "inception_v3" else 224)
        size += 43 * (name == "inception_v3")
        make = partial(build, name, weights=None)
        if side is not None and name.startswith("vit_"):
            size = size // 14 * 14 if name == "vit_h_14" else size
            make = partial(make, image_size=size)
        elif side is not None and name == "maxvit_t":
            make = partial(_small_maxvit, library, size)
        yield name, Network(make, (3, size, size))


def _small_maxvit(library: Any, side: int) -> nn.Module:
    model: nn.Module = library.models.MaxVit(
        input_size=(side, side),
        stem_channels=64,
        partition_size=side // 32,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )
    return model


def _timm(library: Any) -> Iterator[tuple[str, Network]]:
    for name in TIMM:
        config = library.get_pretrained_cfg(name)
        shape = IMAGE if config is None else tuple(config.input_size)
        yield name, Network(partial(library.create_model, name, pretrained=False, num_classes=10), shape)


def _transformers(library: Any) -> Iterator[tuple[str, Network]]:
    def build(name: str) -> nn.Module:
        config, options, _, _ = HUGGING_FACE[name]
        model: nn.Module = getattr(library, name)(getattr(library, config)(**options))
        return model

    for name, (_, _, shape, target) in HUGGING_FACE.items():
        yield name, Network(partial(build, name), shape, target)


LIBRARIES: dict[str, Callable[..., Iterator[tuple[str, Network]]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
