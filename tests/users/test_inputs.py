"""Inputs beyond one image: signals, volumes, clips, waveforms, indices, several images, and what is no input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency import METHODS, feature_ablation, grad_cam, gradient, guided_grad_cam, integrated_gradients, smooth_grad
from tests import cases
from tests.users.networks import Net, cnn, gradients, rand

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES = [(16,), (9,), (6, 8, 10), (5, 5, 7)]
QUICK = {
    "rise": {"num_masks": 4},
    "extremal_perturbation": {"areas": 0.1, "max_iter": 2, "step": 2, "sigma": 2},
    **{name: {"n_steps": 2} for name in ("integrated_gradients", "internal_influence", "conductance")},
    **{name: {"num_samples": 2} for name in ("ss_cam", "is_cam")},
    "smooth_gradient": {"n_samples": 2},
}


def head(axes: int, channels: int = 2) -> Net:
    positions = tuple(range(2, axes + 2))
    return Net(
        lambda s, x: s.fc(s.conv(x).relu().mean(positions)),
        conv=CONVOLUTIONS[axes](channels, 4, 3, 2, padding=1),
        fc=nn.Linear(4, 3),
    )


def cam(net: Net, x: Tensor, target: int) -> Tensor:
    """Grad-CAM at 'conv', of a head that means over all positions: the weights are the same everywhere."""
    y = net.conv(x).detach()
    positions = tuple(range(2, x.ndim))
    weights = gradients(lambda y: net.fc(y.relu().mean(positions))[:, target], y).mean(positions, keepdim=True)
    return (y * weights).sum(1, keepdim=True).relu()


# --- signals and volumes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_map_of_a_signal_or_a_volume_is_resized(size):
    """True is the input's size; a tuple names the innermost axis first; a number is the length of a signal."""
    net, x = head(len(size)), rand(2, 2, *size)
    expected, mode = cam(net, x, 1), MODES[len(size)]
    torch.testing.assert_close(grad_cam(net, x, 1, "conv"), expected)
    torch.testing.assert_close(
        grad_cam(net, x, 1, "conv", resize=True), F.interpolate(expected, size, mode=mode, align_corners=False)
    )
    other = (11, 4, 3)[: len(size)]
    found = grad_cam(net, x, 1, "conv", resize=other, resize_mode="nearest")
    torch.testing.assert_close(found, F.interpolate(expected, other[::-1], mode="nearest"))
    if len(size) == 1:
        assert torch.equal(grad_cam(net, x, 1, "conv", resize=11, resize_mode="nearest"), found)
    assert grad_cam(net, x, 1, "conv", resize=True, resize_mode=mode).shape == (2, 1, *size)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_map_of_a_signal_or_a_volume_is_smoothed(size):
    """Along every axis, the border repeated: against the weights of the definition, position by position."""
    net, x = head(len(size)), rand(1, 2, *size)
    sigma = 0.1 * max(size)
    expected = gradients(lambda x: net(x)[:, 1], x).abs().amax(1, keepdim=True)
    reach = range(-int(-(-4 * sigma // 1)), int(-(-4 * sigma // 1)) + 1)
    weights = torch.tensor([-(i**2) / (2 * sigma**2) for i in reach], dtype=torch.float64).softmax(0)
    for axis in range(2, expected.ndim):
        at = [[min(max(u + i, 0), expected.shape[axis] - 1) for i in reach] for u in range(expected.shape[axis])]
        columns = [(expected.index_select(axis, torch.tensor(of)).movedim(axis, -1) * weights).sum(-1) for of in at]
        expected = torch.stack(columns, axis)
    torch.testing.assert_close(gradient(net, x, 1, smooth=0.1), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_guided_grad_cam_of_a_signal_or_a_volume(size):
    """The guided gradient through one ReLU is the positive part of what comes back to it."""
    net, x = head(len(size)), rand(2, 2, *size)
    positions = tuple(range(2, x.ndim))
    y = net.conv(x).detach()
    back = gradients(lambda y: net.fc(y.mean(positions))[:, 1], y).relu() * (y > 0)
    guided = gradients(lambda x: net.conv(x) * back, x)
    weights = F.interpolate(cam(net, x, 1), size, mode=MODES[len(size)], align_corners=False)
    expected = (guided * weights).abs().amax(1, keepdim=True)
    torch.testing.assert_close(guided_grad_cam(net, x, 1, "conv"), expected)
    both = guided_grad_cam(net, x, torch.tensor([[1, 0], [1, 2]]), "conv")
    torch.testing.assert_close(both[:, :1], expected)


@pytest.mark.parametrize("size", [(40,), (53,), (10, 11, 12)], ids=str)
@pytest.mark.parametrize("layer", ["", "conv"])
def test_extremal_perturbation_finds_the_part_that_counts(size, layer):
    """The score is what the network sees in a planted part, all of which the mask keeps, and little else."""
    part = (slice(None), slice(None), *[slice(side // 4, side // 4 + 4) for side in size])
    net = Net(lambda s, x: s.conv(x)[part].flatten(1).mean(1, keepdim=True) * 50, conv=CONVOLUTIONS[len(size)](1, 1, 1))
    nn.init.ones_(net.conv.weight)
    x = torch.ones(1, 1, *size, dtype=torch.float64)
    planted = torch.zeros_like(x)
    planted[part] = 1
    options = {"areas": 0.2, "max_iter": 200, "step": 2, "sigma": 2, "perturbation": "fade", "jitter": False}
    found = METHODS["extremal_perturbation"].function(net, x, 0, layer, **options)
    assert found.shape == x.shape
    assert found[planted == 1].min() > 0.7
    assert found[planted == 0].mean() < 0.5


@pytest.mark.parametrize("size", [(10,), (4, 5, 6)], ids=str)
def test_masks_of_any_number_of_axes_are_those_of_the_formula(size):
    """Every position: the smooth maximum of its cells, each weighed by its distance."""
    step, sigma = 2, 2
    generator = saliency.MaskGenerator(size, step=step, sigma=sigma)
    parameters = rand(1, 1, *generator.shape_in)
    found, _ = generator.generate(parameters)
    for at in (tuple(0 for _ in size), tuple(side - 1 for side in size), tuple(side // 2 for side in size)):
        top = bottom = 0.0
        window = [range(-9, 10)] * len(size)
        for offset in torch.cartesian_prod(*[torch.tensor(list(w)) for w in window]).view(-1, len(size)).tolist():
            # A cell stands in the middle of nothing but its own corner: at step times its number.
            cell = [position // step + o for position, o in zip(at, offset, strict=True)]
            inside = all(0 <= c < n for c, n in zip(cell, generator.shape_in, strict=True))
            value = parameters[(0, 0, *cell)].item() if inside else 0.0
            distance = sum((step * c - p) ** 2 for c, p in zip(cell, at, strict=True)) ** 0.5 / sigma
            reached = all(_in_window(generator, p, c) for p, c in zip(at, cell, strict=True))
            if reached:
                z = value * float(torch.exp(torch.tensor(-2 * max(0.0, distance - 0.5) ** 2, dtype=torch.float64)))
                share = float(torch.exp(torch.tensor(20 * z, dtype=torch.float64)))
                top, bottom = top + z * share, bottom + share
        assert found[(0, 0, *at)].item() == pytest.approx(top / bottom, abs=1e-5)


def _in_window(generator: saliency.MaskGenerator, position: int, cell: int) -> bool:
    """Of the padded grid, a position sees the window that begins at its own cell."""
    shifted = position + round(generator.sigma)
    begin = shifted // generator.step - generator.padding
    return begin <= cell <= begin + 2 * generator.radius


@pytest.mark.parametrize("size", [(16,), (6, 8, 10)], ids=str)
@pytest.mark.parametrize("method", [case.name for case in cases.GENERAL])
def test_every_method_explains_a_signal_and_a_volume(method, size):
    found = METHODS[method].function(
        head(len(size)), rand(2, 2, *size), 1, resize=True, smooth=0.05, **QUICK.get(method, {})
    )
    assert found.shape == (2, 1, *size)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "resize", "mode"),
    [
        ((2, 2, 16), (4, 4), "bilinear"),
        ((2, 2, 6, 8, 10), 7, "bilinear"),
        ((2, 2, 16), True, "bicubic"),
        ((2, 2, 6, 8, 10), (3, 3, 3), "bicubic"),
    ],
)
def test_a_size_of_other_axes_is_refused(shape, resize, mode):
    with pytest.raises(ValueError, match=r"^resize=.*expected .*\.$"):
        grad_cam(head(len(shape) - 2), rand(*shape), 1, "conv", resize=resize, resize_mode=mode)


# --- clips ----------------------------------------------------------------------------------------------------------


def clips() -> Net:
    """(B, T, C, H, W): a network of images that runs on all frames at once."""

    def forward(s: Net, x: Tensor) -> Tensor:
        return s.fc(s.conv(x.flatten(0, 1)).relu().mean((2, 3)).view(*x.shape[:2], -1).mean(1))

    return Net(forward, conv=nn.Conv2d(3, 4, 3, 2, padding=1), fc=nn.Linear(4, 2))


def video() -> Net:
    """(B, T, C, H, W): a convolution over the frames, too."""
    return Net(
        lambda s, x: s.fc(s.conv(x.transpose(1, 2)).relu().mean((2, 3, 4))), conv=nn.Conv3d(3, 4, 2), fc=nn.Linear(4, 2)
    )


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_a_layer_that_works_on_frames_gives_a_map_of_each(frames):
    net, x = clips(), rand(2, frames, 3, 8, 10)
    y = net.conv(x.flatten(0, 1)).detach()
    weights = gradients(lambda y: net.fc(y.relu().mean((2, 3)).view(2, frames, 4).mean(1))[:, 1], y)
    expected = (y * weights.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu()
    found = grad_cam(net, x, 1, "conv")
    torch.testing.assert_close(found, expected.view(2, frames, 4, 5))
    torch.testing.assert_close(grad_cam(net, x, 1), found)
    larger = F.interpolate(expected, (8, 10), mode="bilinear").view(2, frames, 8, 10)
    torch.testing.assert_close(grad_cam(net, x, 1, "conv", resize=True), larger)
    assert grad_cam(net, x, 1, "conv", resize=(7, 6)).shape == (2, frames, 6, 7)
    path = saliency.internal_influence(net, x, 1, "conv", n_steps=3, internal_batch_size=2)
    assert path.shape == (2, frames, 4, 5)


@pytest.mark.parametrize("make", [clips, video])
@pytest.mark.parametrize("frames", [2, 4])
def test_the_gradient_takes_no_maximum_over_frames(make, frames):
    net, x = make(), rand(2, frames, 3, 6, 7)
    dx = gradients(lambda x: net(x)[:, 1], x)
    torch.testing.assert_close(gradient(net, x, 1), dx.abs().amax(2))
    torch.testing.assert_close(saliency.linear_approx(net, x, 1), (x * dx).sum(2))
    torch.testing.assert_close(saliency.gradient_x_activation(net, x, 1, reduction=None), x * dx)
    both = gradient(net, x, torch.tensor([[1, 0], [1, 0]]))
    torch.testing.assert_close(both[:, 0], dx.abs().amax(2))


def test_a_convolution_over_frames_gives_one_map_a_clip():
    net, x = video(), rand(2, 5, 3, 6, 7)
    volume = x.transpose(1, 2)
    y = net.conv(volume).detach()
    weights = gradients(lambda y: net.fc(y.relu().mean((2, 3, 4)))[:, 1], y).mean((2, 3, 4), keepdim=True)
    expected = (y * weights).sum(1, keepdim=True).relu()
    torch.testing.assert_close(grad_cam(net, x, 1, "conv"), expected)
    assert grad_cam(net, x, 1, "conv", resize=True).shape == (2, 1, 5, 6, 7)


def test_the_influence_of_frames_is_that_of_each_step():
    net, x = clips(), rand(2, 3, 3, 8, 10)
    total = torch.zeros(6, 4, 4, 5, dtype=torch.float64)
    for step in (0.25, 0.75):
        y = net.conv((step * x).flatten(0, 1)).detach()
        total += gradients(lambda y: net.fc(y.relu().mean((2, 3)).view(2, 3, 4).mean(1))[:, 1], y) / 2
    found = saliency.internal_influence(net, x, 1, "conv", n_steps=2, method="riemann_middle")
    torch.testing.assert_close(found, total.sum(1).view(2, 3, 4, 5))


@pytest.mark.parametrize("make", [clips, video])
def test_masks_of_a_clip_are_over_its_frames(make):
    net, x = make(), rand(2, 4, 3, 6, 7)
    masks = rand(3, 1, 4, 6, 7)
    with torch.no_grad():
        scores = [net(x * mask.transpose(0, 1))[:, 1].sigmoid() for mask in masks]
    expected = sum(score[:, None, None, None] * mask for score, mask in zip(scores, masks, strict=True)) / 3
    torch.testing.assert_close(METHODS["rise"].function(net, x, 1, filter_masks=masks), expected)
    assert METHODS["extremal_perturbation"].function(net, x, 1, areas=0.1, max_iter=2, step=2, sigma=2).shape == (
        2,
        4,
        6,
        7,
    )


@pytest.mark.parametrize("method", ["gradient", "occlusion", "guided_grad_cam", "integrated_gradients"])
def test_methods_at_the_input_give_a_map_of_each_frame(method):
    net, x = clips(), rand(2, 2, 3, 6, 7)
    found = METHODS[method].function(net, x, 1, smooth=0.05, **QUICK.get(method, {}))
    assert found.shape == (2, 2, 6, 7)


def test_methods_that_run_a_layer_again_refuse_one_that_works_on_frames():
    for method in (integrated_gradients, feature_ablation):
        with pytest.raises(ValueError, match=r"saliency_layer='conv' .*expected a layer with one row per image"):
            method(clips(), rand(2, 2, 3, 6, 7), 1, "conv")


# --- tables, waveforms, indices, dicts ------------------------------------------------------------------------------


def test_a_waveform_is_a_row_of_features_unless_a_layout_says_how_it_is_read():
    net = Net(lambda s, x: s.fc(s.conv(x[:, None]).relu().mean(2)), conv=nn.Conv1d(1, 4, 5, 2), fc=nn.Linear(4, 2))
    x = rand(2, 33)
    dx = gradients(lambda x: net(x)[:, 1], x)
    torch.testing.assert_close(saliency.gradient_x_activation(net, x, 1, reduction=None), x * dx)
    torch.testing.assert_close(gradient(net, x, 1, layout=lambda x: x[:, None]), dx.abs()[:, None])
    found = grad_cam(net, x, 1, "conv", layout="channels_first")
    assert found.shape == (2, 1, 15)
    torch.testing.assert_close(grad_cam(net, x, 1, "conv"), found)  # the pass itself shows that grid
    larger = grad_cam(net, x, 1, "conv", layout="channels_first", resize=True)
    torch.testing.assert_close(larger, F.interpolate(found, 33, mode="linear"))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 5)])
def test_indices_are_explained_at_the_embedding(shape):
    x = torch.arange(torch.Size(shape).numel()).view(shape) % 7
    net = Net(
        lambda s, i: s.fc(s.emb(i).flatten(1, -2).mean(1) if i.ndim > 1 else s.emb(i)),
        emb=nn.Embedding(7, 4),
        fc=nn.Linear(4, 2),
    )
    found = gradient(net, x, 1, "emb", layout="layer", gradient_to_saliency=saliency.engine.maps.gradient_of)
    expected = gradients(lambda y: net.fc(y.flatten(1, -2).mean(1) if x.ndim > 1 else y)[:, 1], net.emb(x))
    torch.testing.assert_close(found, expected)
    if x.ndim == 1:
        torch.testing.assert_close(gradient(net, x, 1, "emb"), expected.abs().amax(1)[:, None, None, None])
    if x.ndim == 2:
        found = gradient(net, x, 1, "emb", layout="channels_last")
        torch.testing.assert_close(found, expected.abs().amax(2)[:, None])
    with pytest.raises(ValueError, match=r"input=torch.int64 is not differentiable; expected a floating-point"):
        gradient(net, x, 1)


@pytest.mark.parametrize("wrap", [lambda x: {"image": x}, lambda x: [[x]], lambda x: (x, [x])])
def test_dicts_and_nested_lists_are_built_by_a_module(wrap):
    with pytest.raises(ValueError, match=r"^input=.* is not a tensor; .* a Module that builds them from tensors\.$"):
        gradient(cnn(), wrap(rand(1, 3, 6, 6)), 1)


@pytest.mark.parametrize("method", [case.name for case in cases.GENERAL])
def test_further_arguments_reach_every_method(method):
    """A dict with tensors in a list as a further argument, and one that has to be given by its name."""

    def forward(s: Net, x: Tensor, more: dict[str, list[Tensor]], *, bias: Tensor) -> Tensor:
        return s.fc(s.conv(x + more["shift"][0] + bias).relu().mean((2, 3)))

    net = Net(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 3))
    x, shift, bias = rand(2, 3, 7, 8), rand(2, 3, 7, 8), rand(2, 1, 1, 1)

    class Bound(nn.Module):
        """The same network with what one image of the batch is given."""

        def __init__(self, i: int) -> None:
            super().__init__()
            self.net, self.i = net, i

        def forward(self, x: Tensor) -> Tensor:
            return net(x, {"shift": [shift[self.i : self.i + 1]]}, bias=bias[self.i : self.i + 1])

    options = QUICK.get(method, {})
    function = METHODS[method].function
    if method == "feature_permutation":  # it mixes the images of a batch
        options = {**options, "additional_forward_args": ({"shift": [shift]},), "forward_kwargs": {"bias": bias}}
        assert function(net, x, 1, "conv", **options).isfinite().all()
        return
    more = {"additional_forward_args": ({"shift": [shift]},), "forward_kwargs": {"bias": bias}}
    found = function(net, x, 1, **more, **options)
    each = torch.cat([function(Bound(i), x[i : i + 1], 1, **options) for i in range(2)])
    torch.testing.assert_close(found, each, rtol=1e-6, atol=1e-8)


# --- several images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [(20, 20), (6, 40), (8, 9)])
def test_which_of_two_sizes_is_meant_has_to_be_said(other):
    net = Net(
        lambda s, a, b: s.a(a).mean((2, 3)) + s.b(b).mean((2, 3)),
        a=nn.Conv2d(3, 4, 3, 2, padding=1),
        b=nn.Conv2d(3, 4, 3, 2, padding=1),
    )
    inputs = (rand(2, 3, 8, 10), rand(2, 3, *other))
    for layers in (["a", "b"], "a", None):
        with pytest.raises(ValueError, match=r"resize=True is ambiguous .*expected \(width, height\)"):
            grad_cam(net, inputs, 1, layers, resize=True)
    with pytest.raises(ValueError, match="resize=True is ambiguous"):
        feature_ablation(net, inputs, 1, "a", resize=True)
    maps = grad_cam(net, inputs, 1, ["a", "b"], resize=(7, 5))
    assert [tuple(x.shape) for x in maps] == [(2, 1, 5, 7)] * 2
    assert [x.shape[2:] for x in gradient(net, inputs, 1, resize=True)] == [(8, 10), other]
    for more in ({"additional_forward_args": inputs[1]}, {"forward_kwargs": {"b": inputs[1]}}):
        with pytest.raises(ValueError, match="resize=True is ambiguous"):
            grad_cam(net, inputs[0], 1, "b", resize=True, materialize_grads=True, **more)
        assert grad_cam(net, inputs[0], 1, "a", resize=(7, 5), **more).shape == (2, 1, 5, 7)
        for method in (gradient, guided_grad_cam):
            assert method(net, inputs[0], 1, resize=True, **more).shape == (2, 1, 8, 10)


def siamese() -> Net:
    return Net(
        lambda s, a, b: (s.bb(a).relu().mean((2, 3)) * s.bb(b).relu().mean((2, 3))).sum(1), bb=nn.Conv2d(3, 4, 3)
    )


@pytest.mark.parametrize("call", [-1, 0, 1, "all"])
def test_a_backbone_that_is_shared_is_explained_at_the_call_that_is_asked_for(call):
    net, a, b = siamese(), rand(2, 3, 6, 7), rand(2, 3, 6, 7)
    ys = [net.bb(a).detach(), net.bb(b).detach()]

    def of(i: int) -> Tensor:
        other = ys[1 - i].relu().mean((2, 3))
        weights = gradients(lambda y: (y.relu().mean((2, 3)) * other).sum(1), ys[i]).mean((2, 3), keepdim=True)
        return (ys[i] * weights).sum(1, keepdim=True).relu()

    expected = of(0) + of(1) if call == "all" else of(call % 2)
    torch.testing.assert_close(grad_cam(net, a, None, "bb", additional_forward_args=b, call=call), expected)


@pytest.mark.parametrize("call", [2, -3, 17])
def test_a_wrong_call_is_told_how_many_there_were(call):
    with pytest.raises(ValueError, match=rf"call={call} is not a call of 'bb'; expected one of 2 calls"):
        grad_cam(siamese(), rand(1, 3, 6, 7), None, "bb", additional_forward_args=rand(1, 3, 6, 7), call=call)


@pytest.mark.parametrize("method", ["integrated_gradients", "feature_ablation", "ablation_cam", "score_cam"])
def test_methods_that_run_a_layer_again_explain_its_last_call_alone(method):
    a, b = rand(1, 3, 6, 7), rand(1, 3, 6, 7)
    with pytest.raises(ValueError, match=r"^call=0 is not .*expected"):
        METHODS[method].function(siamese(), a, None, "bb", additional_forward_args=b, call=0)


# --- what is no input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("axes", "shape"), [(2, (3, 12, 10)), (2, (3, 3, 3)), (1, (3, 16)), (3, (3, 4, 6, 6))], ids=str
)
def test_an_image_without_a_batch_axis(method, axes, shape):
    with pytest.raises(ValueError, match="has no batch axis") as error:
        METHODS[method].function(head(axes, channels=3), rand(*shape), 1)
    assert str(error.value) == f"input={shape} has no batch axis; expected (N, C, H, W), such as x[None] for one image."


@pytest.mark.parametrize("method", METHODS)
def test_an_image_of_bytes(method):
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^input=torch.uint8 is not floating-point; expected .*x\.float\(\) / 255\.$"):
        METHODS[method].function(cnn(), image, 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_on_another_device(method):
    with pytest.raises(ValueError, match=r"^input=a tensor of .* is on meta, the model on cpu; expected both on one"):
        METHODS[method].function(cnn(), rand(2, 3, 8, 8).to("meta"), 1)


def test_a_batch_of_signals_is_no_image():
    """Spectrograms (N, F, T) of a network that adds the channel itself."""
    net = Net(lambda s, x: s.conv(x[:, None]).mean((2, 3)), conv=nn.Conv2d(1, 4, 3))
    for samples in (1, 3):
        x = rand(samples, 6, 9)
        expected = gradients(lambda x: net(x)[:, 1], x).abs().amax(1, keepdim=True)
        torch.testing.assert_close(gradient(net, x, 1), expected)


def test_smooth_grad_takes_a_method():
    net, x = cnn(), rand(1, 3, 8, 8)
    for wrong in (net, gradient(net, x, 1), "gradient"):
        with pytest.raises(ValueError, match=r"^method=.* is not a method; .*smooth_grad\(gradient\)\(model, input"):
            smooth_grad(wrong)
    with pytest.raises(ValueError, match="is not a method"):
        smooth_grad(net, x, 1)
    with pytest.raises(ValueError, match=r"n_samples=a tensor of shape \(1, 3, 8, 8\)"):
        smooth_grad(gradient, x, 1)


@pytest.mark.parametrize("method", ["score_cam", "ablation_cam", "recipro_cam", "feature_ablation"])
def test_the_input_has_its_channels_first_whatever_the_model_is_made_of(method):
    """A linear layer in the model says nothing of the layout of its input, of which one axis is one of channels."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 4)).double().eval()
    assert METHODS[method].function(net, rand(1, 2, 3, 4), 1, saliency_layer="").shape == (1, 1, 3, 4)
