"""lxt: relevance through torchvision's and Hugging Face's vision transformers, which it patches and we do not."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import saliency
from saliency import rules
from tests.parity.agreement import assert_agree

# The package itself imports the language models that it patches, of which newer transformers lack parts.
lxt = pytest.importorskip("lxt")
package = sys.modules.setdefault("lxt.efficient", ModuleType("lxt.efficient"))
package.__path__ = [str(Path(lxt.__file__).parent / "efficient")]
patches = pytest.importorskip("lxt.efficient.patches")
lxt_zennit = pytest.importorskip("lxt.efficient.zennit_patches")
zennit = pytest.importorskip("zennit")

pytestmark = pytest.mark.parity
CLASS = 3


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.double().eval().requires_grad_(False).named_parameters():
        if parameter.ndim < 2 or not parameter.any():
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
    return model


def image() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def patch_parts(monkeypatch: pytest.MonkeyPatch, *activations: type[nn.Module]) -> None:
    for activation in activations:
        monkeypatch.setattr(activation, "original_forward", activation.forward, raising=False)
        monkeypatch.setattr(activation, "forward", patches.non_linear_forward)
    monkeypatch.setattr(nn.LayerNorm, "forward", patches.layer_norm_forward)


def test_cp_on_torchvision(monkeypatch):
    """Its gamma rule reaches modules: the projections of attention are none, and keep their gradient."""
    from torchvision.models import VisionTransformer

    model, input = randomised(VisionTransformer(32, 8, 3, 4, 24, 48, num_classes=5)), image()
    projections = {"*.self_attention": rules.epsilon(0)}
    table = rules.relevance_rules(rules.gamma(0.25, 1e-12), rules.gamma(0.05, 1e-12), layers=projections)
    ours = saliency.lrp(model, input, CLASS, rules=table, reduction=None)

    patch_parts(monkeypatch, nn.GELU)
    attention = nn.MultiheadAttention
    monkeypatch.setattr(attention, "original_forward", attention.forward, raising=False)
    monkeypatch.setattr(attention, "forward", patches.cp_multi_head_attention_forward)
    monkeypatch.setattr(zennit.core.BasicHook, "forward", lxt_zennit.forward)
    monkeypatch.setattr(zennit.core.BasicHook, "backward", lxt_zennit.backward)
    # It divides by inputs that it keeps 1e-10 away from 0, of which some are as small as 1e-4.
    monkeypatch.setattr(lxt_zennit, "stabilize", lambda x, epsilon: zennit.core.stabilize(x, epsilon * 1e-3))
    layers = [(nn.Conv2d, zennit.rules.Gamma(0.25, stabilizer=1e-12)), (nn.Linear, zennit.rules.Gamma(0.05, 1e-12))]
    composite = zennit.composites.LayerMapComposite(layers)
    leaf = input.clone().requires_grad_()
    with composite.context(model) as modified:
        modified(leaf)[0, CLASS].backward()
    assert_agree(ours, leaf.detach() * leaf.grad, 1e-7)


@pytest.mark.zoo
@pytest.mark.parametrize("kind", ["cp", "attn_lrp"])
def test_attention_on_hugging_face(monkeypatch, kind):
    transformers = pytest.importorskip("transformers")
    from transformers.activations import GELUActivation
    from transformers.models.vit import modeling_vit

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5, attn_implementation="eager")
    model, input = randomised(transformers.ViTForImageClassification(config)), image()
    table = getattr(rules, kind)(gamma=0, convolution=0, epsilon=1e-12)
    ours = saliency.lrp(model, input, CLASS, rules=table, reduction=None)

    patch_parts(monkeypatch, GELUActivation)
    wrap = patches.cp_wrap_attention_forward if kind == "cp" else patches.wrap_attention_forward
    monkeypatch.setattr(modeling_vit, "eager_attention_forward", wrap(modeling_vit.eager_attention_forward))
    leaf = input.clone().requires_grad_()
    model(pixel_values=leaf).logits[0, CLASS].backward()
    assert_agree(ours, leaf.detach() * leaf.grad, 1e-7)
