"""The driver: activation and gradient at a layer are those that autograd gives a network cut in two by hand."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency.engine.call import make_call
from saliency.engine.gradients import at_once
from saliency.engine.record import recording
from saliency.engine.settings import Settings
from saliency.engine.site import make_site
from saliency.engine.state import evaluating
from saliency.engine.targets import Targets, get_backward_gradient
from tests import cases

pytestmark = cases.NOTICES


def network() -> nn.Sequential:
    """A chain that can be cut anywhere, with in-place operations behind most of its layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 4, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()


def image() -> Tensor:
    return torch.randn(2, 3, 9, 11, dtype=torch.float64)


def cut(model: nn.Sequential, layer: int, input: Tensor, target: int) -> Tensor:
    """The output of a layer, with the gradient of the class score there: the network run in two parts."""
    model = model.eval()
    x = model[: layer + 1](input.clone()).detach().requires_grad_()
    (x.grad,) = torch.autograd.grad(model[layer + 1 :](x.clone())[:, target].sum(), x)
    return x


def _both(x: Tensor) -> Tensor:
    return torch.cat([x, x.grad], 1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", range(-1, 6))
def test_activation_and_gradient_are_autograds(layer, training):
    model, input = network(), image()
    expected = cut(network(), layer, input, 1)
    name = str(layer) if layer >= 0 else ""
    found = saliency.saliency(model.train(training), input, 1, name, gradient_to_saliency=_both)
    torch.testing.assert_close(found, torch.cat([expected.detach(), expected.grad], 1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("layer", range(1, 6))
def test_what_goes_into_a_layer(layer):
    input = image()
    found = saliency.saliency(
        network(), input, 1, str(layer), gradient_to_saliency=_both, attribute_to_layer_input=True
    )
    expected = saliency.saliency(network(), input, 1, str(layer - 1), gradient_to_saliency=_both)
    assert torch.equal(found, expected)


def test_a_layer_used_twice_is_explained_at_its_last_call():
    model, input = cases.TWICE.model(), cases.TWICE.input()
    with torch.no_grad():
        x = model.conv(model.conv(model.stem(input).relu()).relu())
    x.requires_grad_()
    (x.grad,) = torch.autograd.grad(model.classifier(x.tanh().mean((2, 3)))[:, 2].sum(), x)
    found = saliency.saliency(model, input, 2, "conv", gradient_to_saliency=_both)
    torch.testing.assert_close(found, torch.cat([x.detach(), x.grad], 1), rtol=1e-12, atol=1e-15)


def test_residual_layers():
    """The tensor that ``out += identity`` overwrites is still known to the probe."""
    model, input = cases.RESIDUAL.model(), cases.RESIDUAL.input()
    with torch.no_grad():
        identity = model.stem(input).relu()
        x = model.norm(model.conv(identity))
    x.requires_grad_()
    (x.grad,) = torch.autograd.grad(model.classifier((x + identity).relu().mean((2, 3)))[:, 2].sum(), x)
    found = saliency.saliency(model, input, 2, "norm", gradient_to_saliency=_both)
    torch.testing.assert_close(found, torch.cat([x.detach(), x.grad], 1), rtol=1e-12, atol=1e-15)


def test_tokens_and_channels_last_are_brought_into_one_shape():
    """The gradient goes the same way as the activation; tokens in front of the grid are left out."""
    for case, name in ((cases.TRANSFORMER, "blocks.0"), (cases.CHANNELS_LAST, "norm")):
        model, input = case.model(), case.input()
        kept = []
        handle = model.get_submodule(name).register_forward_hook(lambda m, a, y, kept=kept: kept.append(y) or None)
        output = model(input)
        handle.remove()
        (gradient,) = torch.autograd.grad(output[:, 2].sum(), kept[0])

        def grid(x: Tensor) -> Tensor:
            return x[:, -20:].reshape(2, 4, 5, -1).permute(0, 3, 1, 2) if x.ndim == 3 else x.permute(0, 3, 1, 2)

        found = saliency.saliency(model, input, 2, name, gradient_to_saliency=_both)
        expected = torch.cat([grid(kept[0]), grid(gradient)], 1)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-15)
        named = saliency.saliency(
            model, input, 2, name, gradient_to_saliency=_both, layout=(4, 5) if name == "blocks.0" else "channels_last"
        )
        assert torch.equal(named, found)
        shaped = saliency.saliency(model, input, 2, name, gradient_to_saliency=_both, layout=grid)
        assert torch.equal(shaped, found)


def test_an_ambiguous_layout_is_asked_for():
    """Seven channels on a grid of 4 x 5 are no grid of 5 x 7, for the pass shows which; of 7 x 7, nobody can tell."""
    model, input = cases.CHANNELS_LAST.model(), cases.CHANNELS_LAST.input()
    named = saliency.grad_cam(model, input, 1, "mlp.1", layout="channels_last")
    assert named.shape == (2, 1, 4, 5)
    assert torch.equal(saliency.grad_cam(model, input, 1, "mlp.1"), named)
    square = torch.rand(2, 3, 21, 21, dtype=input.dtype)
    with pytest.raises(ValueError, match=r"^layout=None is ambiguous .*\(2, 7, 7, 7\)"):
        saliency.grad_cam(model, square, 1, "mlp.1")
    assert saliency.grad_cam(model, square, 1, "mlp.1", layout="channels_last").shape == (2, 1, 7, 7)


def test_several_inputs():
    model, (x, y) = cases.TWO_INPUTS.model(), cases.TWO_INPUTS.input()
    a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
    model(a.clone(), b.clone())[:, 1].sum().backward()
    for given in ((x, y), [x, y]):
        maps = saliency.gradient(model, given, 1)
        assert isinstance(maps, tuple)
        torch.testing.assert_close(maps[0], a.grad.abs().amax(1, keepdim=True))
        torch.testing.assert_close(maps[1], b.grad.abs().amax(1)[:, None, None, None])
    alone = saliency.gradient(model, x, 1, additional_forward_args=y)
    assert torch.equal(alone, maps[0])
    one = saliency.gradient(cases.IN_PLACE.model(), (x,), 1)
    assert isinstance(one, tuple)
    assert len(one) == 1


def test_what_else_reaches_the_forward_is_copied():
    """The model may overwrite it too."""

    class Greedy(cases.InPlace):
        def forward(self, x: Tensor, *extra: Tensor, factor: dict[str, Tensor]) -> Tensor:
            for tensor in (*extra, factor["deep"]):
                x = x * tensor.mul_(2)
            return self.scores(x)

    extra = tuple(torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factor = {"deep": torch.ones(1, dtype=torch.float64)}
    saliency.gradient(Greedy().double(), image(), 1, additional_forward_args=extra, forward_kwargs={"factor": factor})
    assert [tensor.item() for tensor in (*extra, factor["deep"])] == [1, 1, 1]
    assert all(tensor.grad is None for tensor in extra)


def test_no_graph_is_recorded_in_front_of_the_layer():
    """So a CAM at the last layer costs a forward pass and the tail."""
    model, seen = network().eval(), {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, args, y, name=name: seen.update({name: y.requires_grad}))
    saliency.grad_cam(model, image(), 1, "3")
    assert [name for name, grad in seen.items() if not grad] == ["0", "1", "2", "3"]
    saliency.activation(model, image(), None, "3")
    assert not any(seen.values())


def test_one_forward_pass_for_all_layers_and_targets():
    model, calls = network().eval(), []
    model[0].register_forward_hook(lambda *args: calls.append(1) and None)
    saliency.grad_cam(model, image(), torch.zeros(2, 3, dtype=torch.long), ["0", "3", "4"])
    assert len(calls) == 1


def test_nothing_is_kept_alive():
    alive = []
    model = network().eval()
    model[3].register_forward_hook(lambda m, args, y: alive.append(weakref.ref(y)) and None)
    input = image()
    result = saliency.grad_cam(model, input, 1, "3")
    assert len(alive) == 1
    assert alive[0]() is None
    assert result.grad is None


@pytest.mark.parametrize("layer", ["", "0", "4", ["0", "4"]])
def test_debug(layer):
    """The probes hold every module's output and its gradient."""
    model, input = network(), image()
    plain = saliency.saliency(model, input, 1, layer)
    result, probes = saliency.saliency(model, input, 1, layer, debug=True)
    for a, b in zip(result, plain, strict=True):
        assert torch.equal(a, b)
    assert list(probes) == ["", *(str(i) for i in range(9))]
    for i in range(-1, 6):
        expected = cut(network(), i, input, 1)
        probe = probes[str(i) if i >= 0 else ""]
        torch.testing.assert_close(probe.data[0].detach(), expected.detach(), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(probe.data[0].grad, expected.grad, rtol=1e-12, atol=1e-15)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_debug_with_k_targets_keeps_the_gradients_of_the_last():
    model, input = network(), image()
    _, probes = saliency.saliency(model, input, [[0, 2], [0, 2]], "", debug=True)
    expected = cut(network(), 3, input, 2)
    torch.testing.assert_close(probes["3"].data[0].grad, expected.grad, rtol=1e-12, atol=1e-15)


def test_the_context_is_open_during_both_passes_and_made_once():
    events = []

    class Watch:
        def __enter__(self) -> None:
            events.append("enter")

        def __exit__(self, *error: object) -> None:
            events.append("exit")

    def gradient(output: Tensor, target: int) -> Tensor:
        output.register_hook(lambda dy: events.append("backward"))
        return get_backward_gradient(output, target)

    model = network()
    model[8].register_forward_hook(lambda *args: events.append("forward"))
    saliency.saliency(model, image(), 1, context_builder=Watch, get_backward_gradient=gradient)
    assert events == ["enter", "forward", "backward", "exit"]


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "linear_approx"])
def test_the_pieces_are_independent(name):
    """A reduction of one method, under the rule of another: gradient by hand, reduction by definition."""
    model, input = network().eval(), image()
    x = model[:4](input).detach().requires_grad_()
    hidden = x.clone().relu()
    gradient = model[8].weight[1][:, None, None].expand_as(hidden[0]) / hidden[0, 0].numel()
    x.grad = gradient.relu().expand_as(hidden) * (x > 0)  # the guided rule at the only ReLU behind the layer
    reductions = {
        "grad_cam": (x * x.grad.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu(),
        "layer_cam": (x * x.grad.relu()).sum(1, keepdim=True).relu(),
        "linear_approx": (x * x.grad).sum(1, keepdim=True),
    }
    found = saliency.METHODS[name].function(model, input, 1, "3", context_builder=saliency.GuidedBackpropContext)
    torch.testing.assert_close(found, reductions[name].detach(), rtol=1e-12, atol=1e-15)


def test_a_gradient_that_reaches_nothing_is_an_error():
    class Detached(cases.InPlace):
        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.features(x).mean((2, 3)).detach())

    for layer in ("", "features", ["classifier", "features"]):
        with pytest.raises(ValueError, match=r"^saliency_layer='(features)?' .*gradient.*expected .*\.$"):
            saliency.gradient(Detached().double(), image(), 1, layer)
    with pytest.raises(ValueError, match=r"^saliency_layer='features' .*gradient.*expected .*\.$"):
        saliency.gradient(cases.InPlace().double(), image(), lambda y: torch.ones(2), "features")


def test_a_layer_without_floats_is_an_error():
    class Argmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    model = network()
    model.append(nn.Identity())
    model.index = Argmax()
    model.forward = lambda x: (nn.Sequential.forward(model[:9], x), model.index(x))[0]
    with pytest.raises(ValueError, match=r"^saliency_layer='index' .*expected .*\.$"):
        saliency.gradient(model, image(), 1, "index")


def test_volumes_and_sequences():
    """The input need not be an image."""
    for conv, shape in ((nn.Conv1d, (2, 3, 9)), (nn.Conv3d, (2, 3, 4, 5, 6))):
        torch.manual_seed(0)
        model = nn.Sequential(conv(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        x = torch.randn(shape)
        with torch.no_grad():
            model(x)
        leaf = x.clone().requires_grad_()
        model(leaf)[:, 1].sum().backward()
        torch.testing.assert_close(saliency.gradient(model, x, 1), leaf.grad.abs().amax(1, keepdim=True))
        assert saliency.grad_cam(model, x, 1, "0").shape == (2, 1, *(side - 2 for side in shape[2:]))


def test_gradients_at_once():
    """Activations with gradients: per target, per site, per tensor."""
    model, input = network(), image()
    call = make_call(model, input)
    sites = [make_site(call, "3"), make_site(call, "")]
    with evaluating(model):
        found = list(at_once(call, Targets([[0, 1], [0, 1]], 2), sites, Settings()))
        bare = list(at_once(call, Targets(1, 2), sites, Settings(get_backward_gradient=None)))
    for target, of_target in enumerate(found):
        for (x,), layer in zip(of_target, (3, -1), strict=True):
            expected = cut(network(), layer, input, target)
            torch.testing.assert_close(x, expected.detach(), rtol=1e-12, atol=1e-15)
            torch.testing.assert_close(x.grad, expected.grad, rtol=1e-12, atol=1e-15)
            assert not x.requires_grad
    assert all(x.grad is None for of_target in bare for at_site in of_target for x in at_site)


def test_recording_gives_the_output_inside_the_context():
    model, input = network().eval(), image()
    call = make_call(model, input)
    with (
        torch.no_grad(),
        recording(call, [make_site(call, "3")], saliency.NullContext) as found,
    ):
        output = found.output
        assert torch.equal(output, model(input)) or output.shape == (2, 3)
        assert output.requires_grad
        assert found.tensors[0][0].shape == (2, 4, 4, 5)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("extra", "expected"), [(None, ()), (3, (3,)), ((1, 2), (1, 2)), ([1, 2], (1, 2)), ({"a": 1}, ({"a": 1},))]
)
def test_make_call(extra, expected):
    x = torch.ones(1, 2)
    call = make_call(nn.Identity(), x, extra, {"key": 4})
    assert call.inputs == (x,)
    assert call.args == expected
    assert call.kwargs == {"key": 4}
    assert make_call(nn.Identity(), [x, x]).inputs == (x, x)
    assert make_call(nn.Identity(), x).kwargs == {}


def test_a_rule_sees_the_functional_calls_of_the_model_but_not_of_the_reduction():
    """The reduction is arithmetic on what was found: rules are for the model."""
    model, input = network().eval(), image()
    plain = saliency.saliency(model, input, 1, "", gradient_to_saliency=lambda x: F.relu(x.grad).sum(1, keepdim=True))
    context = saliency.RuleContext({F.relu6: lambda *args: None, torch.sum: lambda *args: None})
    ruled = saliency.saliency(
        model,
        input,
        1,
        "",
        context_builder=lambda: context,
        gradient_to_saliency=lambda x: torch.sum(F.relu(x.grad), 1, keepdim=True),
    )
    assert torch.equal(plain, ruled)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_and_inference_models_are_refused_in_one_sentence():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4 * 5, 3))
    input = torch.randn(1, 1, 6, 7)
    scripted = torch.jit.script(model)
    with pytest.raises(ValueError, match="does not accept hooks"):
        saliency.gradient(scripted, input, 1)
    with pytest.raises(ValueError, match="does not accept hooks"):
        saliency.grad_cam(scripted, input, 1, "0")
    with torch.inference_mode():
        born_there = nn.Sequential(nn.Flatten(), nn.Linear(42, 3))
    with pytest.raises(ValueError, match="built inside inference_mode"):
        saliency.gradient(born_there, input, 1)
    assert saliency.activation(born_there, input, None, "1").shape == (1, 1, 1, 1)


class Auxiliary(nn.Module):
    """A head behind the backbone, and one that the main output does not depend on and that runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head, self.aux = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.backbone(x)
        return {"out": self.head(x).mean((2, 3)), "aux": self.aux(x)}


def test_the_default_layer_is_one_that_the_main_output_depends_on():
    assert saliency.find_layer(Auxiliary(), torch.rand(2, 3, 9, 12)) == "head"
    assert saliency.grad_cam(Auxiliary(), torch.rand(2, 3, 9, 12), 1).shape == (2, 1, 7, 10)


def test_the_default_layer_keeps_its_place_where_unpadded_convolutions_change_the_aspect():
    layers = [nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 5), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    model(torch.rand(1, 3, 30, 90))
    assert saliency.find_layer(model, torch.rand(1, 3, 30, 90)) == "5"


def test_the_layout_of_a_layer_is_not_that_of_the_input():
    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x.movedim(1, -1)) ** 2).mean((1, 2))

    at_input, at_layer = saliency.gradient(
        ChannelsLast(), torch.rand(2, 3, 6, 8), 1, ["", "norm"], layout="channels_last"
    )
    assert at_input.shape == at_layer.shape == (2, 1, 6, 8)


def test_a_layer_that_folds_something_into_the_batch_is_refused():
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            halves = torch.cat(x.chunk(2, 3))
            first, second = self.inside(halves).mean((2, 3)).chunk(2)
            return self.head(first + second)

    with pytest.raises(ValueError, match="not a batch of 2 images"):
        saliency.gradient(Windows(), torch.rand(2, 3, 6, 8), 1, "inside")


def test_wrong_pieces_are_named():
    model, input = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"context_builder=.* is not a context class"):
        saliency.gradient(model, input, 1, context_builder=saliency.GuidedBackpropContext())
    with pytest.raises(ValueError, match=r"gradient_to_saliency=.* returned no tensor"):
        saliency.gradient(model, input, 1, gradient_to_saliency=lambda x: None)
    for function in (lambda x: x.sum(1), lambda x: x.sum()):
        with pytest.raises(ValueError, match=r"gradient_to_saliency=.* of \(2, 3, 2, 2\); expected \(N, 1, "):
            saliency.gradient(model, input, 1, gradient_to_saliency=function)
        with pytest.raises(ValueError, match=r"reduction=.* of \(2, 3, 2, 2\); expected \(N, 1, "):
            saliency.grad_cam(model, input, 1, "", reduction=function)
    with pytest.raises(ValueError, match=r"get_backward_gradient=.*expected .*shape \(2, 3\)"):
        saliency.gradient(model, input, 1, get_backward_gradient=lambda output, target: torch.ones(2))
    with pytest.raises(ValueError, match="is not a layer"):
        saliency.gradient(model, input, 1, [])
    with pytest.raises(ValueError, match="interpolate_mode='foo'"):
        saliency.guided_grad_cam(model, input, 1, "0", interpolate_mode="foo")
    with pytest.raises(ValueError, match="lazy parameters"):
        saliency.gradient(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), input, 1)
    with pytest.raises(ValueError, match="do not apply to a map"):
        saliency.gradient(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), input.view(2, 3, 1, 1, 2, 2), 1, smooth=0.1)
    with pytest.raises(ValueError, match="debug=True"):
        saliency.smooth_grad(saliency.gradient)(model, input, 1, debug=True)


def test_a_layer_that_returns_one_number_is_neither_the_default_nor_explained():
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.scale, self.head = nn.Conv2d(3, 4, 3), Mean(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.features(x)
            return self.head((x * self.scale(x)).mean((2, 3)))

    assert saliency.find_layer(Scaled(), torch.rand(2, 3, 6, 8)) == "features"
    with pytest.raises(ValueError, match="not a batch of 2 images"):
        saliency.gradient(Scaled(), torch.rand(2, 3, 6, 8), 1, "scale")


def test_all_calls_of_a_layer_of_several_tensors_add_up_the_first():
    """With the layer's own shape too: what is added up are calls, not the tensors of one."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * x, 3 * x

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: Tensor) -> Tensor:
            (a, b), (c, d) = self.pair(x), self.pair(x + 1)
            return (a + b + 5 * c + d).flatten(1)

    x = torch.rand(2, 3, dtype=torch.float64)
    options = {"call": "all", "reduction": None}
    found = saliency.gradient_x_activation(Twice(), x, torch.ones(2, 3, dtype=torch.float64), "pair", **options)
    torch.testing.assert_close(found, 2 * x + 5 * 2 * (x + 1))
    first, _ = saliency.gradient_x_activation(
        Twice(), x, torch.ones(2, 3, dtype=torch.float64), "pair", call=0, reduction=None
    )
    torch.testing.assert_close(first, 2 * x)
