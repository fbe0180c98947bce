"""A method that did nothing, and a map that shows nothing, say so: once, at the user's line, in the user's words."""

import sys
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import saliency
from saliency import (
    RuleContext,
    contrastive_excitation_backprop,
    deconvnet,
    excitation_backprop,
    grad_cam,
    gradient,
    guided_backprop,
    shared_forward,
)
from saliency.engine.notices import Notices
from saliency.engine.operations import Pre
from tests.cases import Net

RULES = [guided_backprop, deconvnet, excitation_backprop, contrastive_excitation_backprop]


def image(size: int = 12, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def gated(activation) -> Net:
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 4, 3), "next": nn.Conv2d(4, 4, 3), "fc": nn.Linear(4, 5)}
    nn.init.uniform_(parts["fc"].weight)
    return Net(lambda s, x: s.fc(activation(s.next(activation(s.conv(x)))).mean((2, 3))), **parts)


class OwnReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


class OwnSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, g):
        s = ctx.saved_tensors[0].sigmoid()
        return g * s * (1 + ctx.saved_tensors[0] * (1 - s))


def zeroed(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


UNKNOWN = {
    "own function": OwnReLU.apply,
    "own swish": OwnSwish.apply,
    "x * sigmoid(x)": lambda x: x * x.sigmoid(),
    "x * (x > 0)": lambda x: x * (x > 0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "index": zeroed,
    "where": lambda x: torch.where(x > 0, x, 0),
    "maximum of tensors": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "sine": torch.sin,
}


class TestNoRuleRan:
    @pytest.mark.parametrize("name", UNKNOWN)
    @pytest.mark.parametrize("method", [guided_backprop, deconvnet])
    def test_what_has_no_rule_is_a_warning(self, method, name):
        model = gated(UNKNOWN[name])
        with pytest.warns(
            UserWarning, match=r"^context_builder=\w+ changed nothing: .*expected one of .*relu.*silu"
        ) as told:
            found = method(model, image(), 1)
        assert len(told) == 1
        assert told[0].filename == __file__
        torch.testing.assert_close(found, gradient(model, image(), 1))

    def test_a_list_of_targets_and_layers_is_one_call(self):
        model, target = gated(UNKNOWN["where"]), torch.tensor([[0, 1], [2, 3]])
        with pytest.warns(UserWarning, match=r"saliency_layer='', 'conv'") as told:
            guided_backprop(model, image(), target, ["", "conv"])
        assert len(told) == 1

    def test_on_a_kept_pass(self):
        model = gated(UNKNOWN["masked_fill"])
        shared = shared_forward(model, image())
        with pytest.warns(UserWarning, match=r"GuidedBackpropContext changed nothing"):
            guided_backprop(model, image(), 1, shared=shared)

    @pytest.mark.parametrize("options", [{}, {"n_samples": 2}])
    def test_on_a_path(self, options):
        model, name = gated(UNKNOWN["sine"]), "smooth_gradient" if options else "integrated_gradients"
        options = options or {"n_steps": 2}
        for layer in ("", "conv"):
            with pytest.warns(UserWarning, match=r"changed nothing") as told:
                getattr(saliency, name)(
                    model, image(), 1, layer, context_builder=saliency.GuidedBackpropContext, **options
                )
            assert len(told) == 1

    def test_behind_the_layer_there_is_none(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(128, 3))
        with pytest.warns(UserWarning, match=r"after saliency_layer='2'"):
            guided_backprop(model, image(), 1, "2")
        guided_backprop(model, image(), 1, "0")

    def test_a_table_of_ones_own(self):
        def builder() -> RuleContext:
            return RuleContext({torch.tanh: Pre(torch.relu), Tensor.tanh: Pre(torch.relu)})

        with pytest.warns(UserWarning, match=r"context_builder=RuleContext changed nothing: .*expected one of tanh\."):
            guided_backprop(gated(F.relu), image(), 1, context_builder=builder)
        guided_backprop(gated(torch.tanh), image(), 1, context_builder=builder)

    def test_no_rule_is_needed_without_a_backward_pass(self):
        saliency.activation(gated(torch.sin), image(), None, "conv", context_builder=saliency.GuidedBackpropContext)

    @pytest.mark.parametrize("maximum", [torch.maximum, torch.fmax, torch.max, Tensor.maximum])
    @pytest.mark.parametrize("method", [guided_backprop, deconvnet])
    def test_the_maximum_with_a_constant_0_is_a_relu(self, method, maximum):
        found = method(gated(lambda x: maximum(x, torch.tensor(0.0))), image(), 1)
        torch.testing.assert_close(found, method(gated(F.relu), image(), 1))
        with pytest.warns(UserWarning, match="changed nothing"):
            method(gated(lambda x: maximum(x, torch.tensor(-0.1))), image(), 1)


def exportable(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation, nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, bias=False)]
    model = nn.Sequential(*body, activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    nn.init.uniform_(model[-1].weight, -0.5, 1)
    return model


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.next, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        nn.init.uniform_(self.fc.weight, -0.5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.fc((self.next(x).clamp(min=0) + x * 2).flatten(2).mean(2))


EXPORTED = {
    **{
        name: (lambda name=name: exportable(getattr(nn, name)()))
        for name in ("ReLU", "ReLU6", "LeakyReLU", "GELU", "SiLU", "Hardswish", "ELU", "Mish", "Softplus", "PReLU")
    },
    "in place": lambda: exportable(nn.ReLU(True)),
    "SiLU in place": lambda: exportable(nn.SiLU(True)),
    "residual": Residual,
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 4, 2), nn.ReLU(), nn.AvgPool2d(13), nn.Flatten(), nn.Linear(4, 5)
    ).eval(),
    "three dimensions of a linear layer": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(144, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.Flatten(), nn.Linear(24, 5)
    ).eval(),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_program_is_explained_as_the_network_is(name):
    model = EXPORTED[name]()
    program = torch.export.export(model, (image(),)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a map may be lost, or no rule of it apply, in both alike
        for method in RULES:
            expected = method(model, image(), 1, "")
            torch.testing.assert_close(method(program, image(), 1, ""), expected)
            shared = method(program, image(), 1, "", shared=shared_forward(program, image()))
            torch.testing.assert_close(shared, expected)
    if name != "Softplus":
        assert not torch.allclose(guided_backprop(program, image(), 1), gradient(program, image(), 1))


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return None


CUT = {
    "quantised": lambda: torch.ao.quantization.quantize_dynamic(exportable(nn.ReLU()), {nn.Linear}),
    "quantised behind the last convolution": lambda: torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval(),
        {nn.Linear},
    ),
    "a function without a gradient": lambda: nn.Sequential(*exportable(nn.ReLU()), Net(lambda s, x: Cut.apply(x))),
    "no_grad inside": lambda: nn.Sequential(*exportable(nn.ReLU()), Net(lambda s, x: torch.no_grad()(torch.neg)(x))),
    "detached": lambda: nn.Sequential(*exportable(nn.ReLU()), Net(lambda s, x: x.detach())),
}


@contextmanager
def quietly():
    """PyTorch's own words on quantisation, and on operations without a derivative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TestNoGradient:
    @pytest.mark.parametrize("name", CUT)
    @pytest.mark.parametrize("layer", ["", "0"])
    def test_all_methods_raise_the_same(self, name, layer):
        with quietly():
            model, said = CUT[name](), set()
            for method in (gradient, grad_cam, *RULES):
                with pytest.raises(ValueError, match=rf"^saliency_layer='{layer}' is reached by no gradient") as error:
                    method(model, image(), 1, layer)
                said.add(str(error.value))
            for method in RULES[:3]:
                with pytest.raises(ValueError, match="reached by no gradient") as error:
                    method(model, image(), 1, layer, shared=shared_forward(model, image(), [layer]))
                said.add(str(error.value))
        assert len(said) == 1

    @pytest.mark.parametrize("cause", ["no_grad", "inference_mode", "detach", "quantised", "returns several", "input"])
    def test_it_names_the_usual_causes(self, cause):
        aside = Net(
            lambda s, x: (s.conv(x).mean((2, 3)), s.aside(x).mean())[0],
            conv=nn.Conv2d(3, 4, 1),
            aside=nn.Conv2d(3, 4, 1),
        )
        for method in (gradient, grad_cam, saliency.occlusion, saliency.extremal_perturbation):
            options = {"saliency_layer": "aside"}
            with pytest.raises(ValueError, match=rf"^saliency_layer='aside' is reached by no gradient.*{cause}"):
                method(aside, image(), 1, **options)

    def test_a_score_that_does_not_depend_on_the_input(self):
        model = Net(lambda s, x: s.fc(torch.ones(len(x), 4)), fc=nn.Linear(4, 3))
        with pytest.raises(ValueError, match=r"does not depend on it .*not on the input at all"):
            gradient(model, image(), 1)


def vit() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)
    return model


def pooled() -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(6, 4)).eval()


class TestMapThatShowsNothing:
    @pytest.mark.parametrize("layer", ["encoder.ln", "encoder.layers", "encoder.layers.encoder_layer_1"])
    @pytest.mark.parametrize("method", ["grad_cam", "layer_cam", "excitation_backprop", "hires_cam"])
    def test_where_the_class_token_alone_counts(self, method, layer):
        better = "encoder.layers.encoder_layer_1.ln_1"
        with pytest.warns(UserWarning, match=rf"^saliency_layer='{layer}' has a map that is zero .*'{better}'") as told:
            found = getattr(saliency, method)(vit(), image(32), 1, layer)
        assert not found.any()
        assert len(told) == 1
        assert told[0].filename == __file__

    @pytest.mark.filterwarnings("ignore:.*winning probability")
    def test_a_contrast_that_attention_does_not_pass_on(self):
        with pytest.warns(UserWarning, match=r"has a map that is zero everywhere.* try saliency_layer=") as told:
            contrastive_excitation_backprop(vit(), image(32), 1, "encoder.layers.encoder_layer_1")
        assert sum("zero everywhere" in str(notice.message) for notice in told) == 1

    @pytest.mark.parametrize("layer", ["3", "4", "5"])
    @pytest.mark.parametrize("method", ["grad_cam", "gradient", "ablation_cam", "linear_approx", "activation"])
    @pytest.mark.parametrize("resize", [False, True])
    def test_behind_the_pooling(self, method, layer, resize):
        with pytest.warns(
            UserWarning, match=rf"^saliency_layer='{layer}' has a single position.*saliency_layer='2'\."
        ) as told:
            getattr(saliency, method)(pooled(), image(), 1, layer, resize=resize)
        assert len(told) == 1

    def test_layers_that_show_a_map_are_silent(self):
        grad_cam(pooled(), image(), 1)
        gradient(pooled(), image(), 1)
        saliency.gradient_x_activation(pooled(), image(), 1, "5", reduction=None)  # an attribution, no map
        gradient(nn.Linear(3, 2), torch.rand(4, 3), 1)  # a table has no places
        grad_cam(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(4, 3) + 1, 1, "0", layout=None)

    def test_one_map_of_a_batch_may_be_zero(self):
        x = torch.cat([image(), torch.zeros(1, 3, 12, 12)])
        found = saliency.linear_approx(pooled(), x, 1)
        assert not found[2].any()

    def test_the_input_is_tried_where_nothing_is_found(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
        with pytest.warns(UserWarning, match=r"has a single position.*try saliency_layer=''\."):
            gradient(model, image(), 1, "1")

    def test_every_method_on_a_dead_network(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).eval()
        nn.init.constant_(model[0].bias, -100)
        for method in (gradient, guided_backprop, saliency.occlusion, saliency.integrated_gradients):
            with pytest.warns(UserWarning, match=r"^saliency_layer='' has a map that is zero everywhere[^;]*\.$"):
                method(model, image(), 1, "")


def spoilt(value: float) -> nn.Module:
    model = pooled()
    nn.init.constant_(model[5].bias, value)
    return model


def overflowing(value: float) -> Tensor:
    x = image()
    x[0, 0, 0, 0] = value
    return x


QUICK = {"rise_class": {"num_masks": 4}, "rise": {"num_masks": 4}, "ss_cam": {"num_samples": 2}}
SCORED = ["score_cam", "ablation_cam", "ss_cam", "is_cam", "rise", "rise_class", "occlusion", "feature_ablation"]


class TestScoresThatAreNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("method", [name for name in SCORED if hasattr(saliency, name)])
    def test_methods_that_compare_scores(self, method, value):
        with pytest.warns(UserWarning, match="NaN or infinite") as told:
            getattr(saliency, method)(spoilt(value), image(), 1, **QUICK.get(method, {}))
        assert len(told) == 1

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("layer", ["", "0"])
    def test_extremal_perturbations_raise_before_the_search(self, layer, value):
        with pytest.raises(ValueError, match=r"^model=Sequential returned a score that is NaN or infinite; expected"):
            saliency.extremal_perturbation(spoilt(value), image(), 1, saliency_layer=layer)

    def test_a_score_that_the_search_makes_nan(self):
        model = Net(lambda s, x: s.net(x) + torch.where(x.mean((1, 2, 3)) < 0.45, torch.nan, 0)[:, None], net=pooled())
        with quietly(), pytest.warns(UserWarning, match="NaN or infinite"):
            saliency.extremal_perturbation(model, image(), 1, perturbation="fade", max_iter=3)

    @pytest.mark.parametrize(
        "method", ["gradient", "grad_cam", "linear_approx", "guided_backprop", "integrated_gradients"]
    )
    def test_gradients(self, method):
        model = pooled()
        nn.init.constant_(model[5].weight[1], float("nan"))
        with pytest.warns(UserWarning, match="NaN or infinite values.*; the score itself is NaN or infinite") as told:
            getattr(saliency, method)(model, image(), 1)
        assert len(told) == 1

    def test_a_gradient_that_overflows_where_the_score_does_not(self):
        model = Net(lambda s, x: s.fc(x.sqrt().mean((2, 3))), fc=nn.Linear(3, 2))
        with pytest.warns(UserWarning, match=r"^saliency_layer='' has a map with NaN or infinite values[^;]*;[^;]*\.$"):
            gradient(model, overflowing(0.0), 1)


class TestNotices:
    def test_nothing_is_kept_of_a_call(self):
        """Of a call that starts again, only what is true at the end is told."""
        notices = Notices()
        notices.add("idle", "one")
        notices.clear()
        notices.report()

    def test_the_first_of_a_kind_is_told(self):
        notices = Notices()
        for text in ("one", "two"):
            notices.look(torch.zeros(1), lambda values, text=text: ("kind", text), lambda values: " more")
        with pytest.warns(UserWarning, match=r"^one more\.$") as told:
            notices.report()
        assert len(told) == 1

    def test_what_a_device_computes_is_told_by_a_later_call(self, monkeypatch):
        """Nothing waits: a tensor on a device, and the event of its copy, are played here."""
        ready = []

        class Event:
            def __init__(self, device):
                assert device.type == "cuda"

            def record(self):
                pass

            def query(self):
                return bool(ready)

        class OnDevice:
            device, is_meta = torch.device("cuda"), False

            def detach(self):
                return self

            def to(self, device, non_blocking):
                assert (device, non_blocking) == ("cpu", True)
                return torch.zeros(1)

        monkeypatch.setattr(torch, "Event", Event)
        notices = Notices()
        notices.look(OnDevice(), lambda values: ("zero", f"{values}"), lambda values: pytest.fail("the call is over"))
        notices.look(OnDevice(), lambda values: None)
        line = sys._getframe().f_lineno + 1
        notices.report()
        gradient(pooled(), image(), 1)  # the copy is not there yet
        ready.append(True)
        with pytest.warns(UserWarning, match=r"^an earlier call: \[0\.0\]\.$") as told:
            gradient(pooled(), image(), 1)
        assert [(notice.filename, notice.lineno) for notice in told] == [(__file__, line)]
        gradient(pooled(), image(), 1)  # told once

    def test_nothing_is_told_of_the_meta_device(self):
        grad_cam(pooled().to("meta"), image().to("meta"), 1, "2")
        excitation_backprop(pooled().to("meta"), image().to("meta"), 1, "2")

    def test_a_line_is_warned_once(self):
        def explain() -> Tensor:
            return guided_backprop(gated(torch.sin), image(), 1)

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("default")
            for _ in range(3):
                explain()
        assert len(told) == 1
        assert told[0].filename == __file__

    def test_through_a_wrapper_it_is_the_users_line(self):
        with pytest.warns(UserWarning, match="changed nothing") as told:
            saliency.smooth_grad(guided_backprop, n_samples=2)(gated(torch.sin), image(), 1)
        assert {notice.filename for notice in told} == {__file__}

    def test_the_model_runs_no_more_often(self):
        model, calls = gated(F.relu), []
        model.register_forward_hook(lambda *args: calls.append(1))
        guided_backprop(model, image(), 1)
        assert len(calls) == 1


def test_advice_costs_a_pass_once_a_line():
    """In a loop over a data set, the warning of a line is shown once, and so is what had to be run for it."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    nn.init.zeros_(net[4].weight)
    passes = []
    net.register_forward_hook(lambda *args: passes.append(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(4):
            saliency.gradient(net, torch.rand(1, 1, 5, 5), 1)
    assert len(caught) == 1
    assert len(passes) == 5


def test_a_head_of_zeros_is_named():
    """As of torchvision's untrained vision transformers: no layer would show more."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    for parameter in net[3].parameters():
        nn.init.zeros_(parameter)
    with pytest.warns(UserWarning, match="the score itself is 0, as that of an untrained head of zeros is") as told:
        saliency.grad_cam(net, torch.rand(1, 1, 5, 5), 1, "0")
    assert "try saliency_layer" not in str(told[0].message)


def test_advice_is_of_the_model_that_is_explained():
    """In a loop over architectures, the next model may stand where the last one stood in memory."""
    for name in ("first", "second", "third", "fourth"):
        net = nn.Sequential()
        net.add_module(name, nn.Conv2d(1, 2, 3))
        net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)])
        with pytest.warns(UserWarning, match=f"try saliency_layer='{name}'"):
            saliency.grad_cam(net, torch.rand(1, 1, 5, 5), 1, "1")
        del net


def test_a_product_of_two_maps_that_are_nowhere_not_zero_at_once():
    """On the left the first channel is active, and outweighed in Grad-CAM's sum; on the right nothing is active."""
    net = Net(lambda s, x: s.conv(x).relu().mean((2, 3)) @ s.signs, conv=nn.Conv2d(1, 2, 1, bias=False))
    net.conv.weight.data.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    net.signs = torch.tensor([[1.0], [-1.0]])
    x = torch.cat([torch.ones(1, 1, 4, 2), -torch.ones(1, 1, 4, 2)], 3)
    mean = 8 / 16 / 16  # of the gradient: 1 / 16 at the eight positions that are active; its opposite for the second
    right = mean * -1 + -mean * -2
    assert saliency.grad_cam(net, x, 0, "conv").flatten(0, 2)[0].tolist() == [0, 0, right, right]
    assert (saliency.guided_backprop(net, x, 0).flatten(0, 2)[0] > 0).tolist() == [True, True, False, False]
    options = {"saliency_layer": "conv", "interpolate_mode": "nearest"}
    with pytest.warns(UserWarning, match="guided Grad-CAM's map is zero everywhere"):
        assert not saliency.guided_grad_cam(net, x, 0, **options).any()
    # Grad-CAM's map alone is zero: that is said, and nothing else.
    with pytest.warns(UserWarning, match="saliency_layer='conv' has a map that is zero everywhere") as caught:
        saliency.guided_grad_cam(net, x.abs(), 0, **options)
    assert len(caught) == 1
