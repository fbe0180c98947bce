"""The tail gives what the network on copies of the sample gives, and the front runs once, in all."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from saliency.engine.call import make_call
from saliency.engine.contexts import NullContext, ReLUContext
from saliency.engine.site import make_site
from saliency.engine.state import evaluating
from saliency.engine.tail import Tail
from saliency.engine.targets import Targets
from tests import cases
from tests.cases import MODEL_CASES

NETS = {
    "resnet18": ["conv1", "layer1.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "layer3", "layer4.1.bn2"],
    "densenet121": ["features.pool0", "features.denseblock2.denselayer3.conv1", "features.transition3", "features"],
    "googlenet": ["conv2", "inception3b.branch2.0", "inception4a", "inception5b.branch4.1.conv"],
    "mobilenet_v2": ["features.3.conv.0", "features.7", "features.18"],
    "vit_b_16": ["encoder.layers.encoder_layer_9.ln_1", "encoder.layers.encoder_layer_10", "conv_proj"],
    "swin_t": ["features.3.1", "features.5.5.mlp", "norm"],
}
OPTIONS = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "vit_b_16": {"image_size": 32},
}


def network(name, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, num_classes=4, **OPTIONS.get(name, {})).eval()
        if name == "vit_b_16":
            model.heads.head.weight.data.normal_()
    return model.to(dtype)


def draw(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def activations_near(x: Tensor) -> Tensor:
    return (x + 0.3 * draw(3, *x.shape[1:], seed=5, dtype=x.dtype)).requires_grad_()


def compare(model, layer, call, target, context_builder=NullContext, runs=1):
    """Is the tail the network on copies of the input, its layer replaced? And did it need them?"""
    site = make_site(call, layer)
    with evaluating(model), torch.enable_grad():
        tails = [Tail(site, call, context_builder=context_builder, copies=copies) for copies in (False, True)]
        activations = activations_near(tails[0].activation)
        results = []
        for tail in tails:
            for _ in range(runs):  # a run leaves the next one as it was
                output = tail(activations)
                scores = Targets(target, 3).scores(output)[:, 0]
            (gradient,) = torch.autograd.grad(scores.square().sum(), activations)
            results.append((tail.activation, scores.detach(), gradient))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10 * float(plain.abs().max()))
    assert results[0][2].abs().max() > 0
    return not tails[0].replays


@pytest.mark.parametrize("name", NETS)
def test_networks(name):
    model = network(name)
    call = make_call(model, draw(1, 3, 32, 32))
    assert [layer for layer in NETS[name] if compare(model, layer, call, 1)] == []


@pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("side", ["input", "output"])
def test_models_of_the_table(case, side):
    if not case.batched:
        pytest.skip("draws random numbers")
    model, input = case.model(), case.input()
    call = make_call(model, input, **case.options(torch.float64)).rows(torch.tensor([0]))
    target = case.target if not isinstance(case.target, list) else case.target[0]
    for layer in ("", *case.layers) if side == "output" else case.layers:
        site = make_site(call, layer, attribute_to_layer_input=side == "input")
        with evaluating(model), torch.no_grad():
            assert Tail(site, call).replays
        if side == "output":
            compare(model, layer, call, target)


class UNet(nn.Module):
    """Skips from in front of the layer, and from the image itself, into the tail."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.up1, self.up2 = nn.ConvTranspose2d(8, 3, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.down1(x), inplace=True)
        second = F.relu(self.down2(first))
        third = self.up1(torch.cat([self.middle(second), second], 1))
        return self.up2(torch.cat([third, first, x], 1))


@pytest.mark.parametrize("layer", ["down1", "down2", "middle", "up1"])
def test_skips_into_the_tail(layer):
    model = UNet().double()
    assert not compare(model, layer, make_call(model, draw(1, 2, 6, 8)), 1)


class Join(nn.Module):
    """A front and a layer that meet in the ways that have to broadcast."""

    def __init__(self, join) -> None:
        super().__init__()
        self.front = nn.Conv2d(2, 3, 1)
        self.layer = nn.Conv2d(2, 3, 1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.front(x), self.layer(x)).flatten(1)


def _thrown_away(a, b):
    a.add_(b)
    return a * a


def _iadd(a, b):
    a += b
    a *= b
    return a


def _other_way(a, b):
    b += a
    return b


def _size_of_the_front(a, b):
    return (a + b).reshape(len(a), -1)


def _only_front(a, b):
    return a.relu_()


def _add_to_a_view(a, b):
    a[:, :1].add_(b[:, :1])
    return (a * b).flatten(1)


def _add_behind_a_view(a, b):
    view = a.flatten(2)
    a.add_(b)
    return view.mean(2) + b.mean((2, 3))


def _gather(a, b):
    index = a.flatten(2).mean(1).argsort(1)[:, :4]
    tokens = b.flatten(2).mT
    chosen = tokens.gather(1, index[..., None].expand(-1, -1, 3))
    return torch.cat([tokens[:, :1], chosen], 1).flatten(1)


def _mean_over_rows(a, b):
    means = b.reshape(len(a), 3, -1).mean(2)
    return torch.cat([means, b.amax((2, 3))], 1)


def _assert_shapes(a, b):
    assert a.shape == b.shape
    return a + b


def _write_to_a_part(a, b):
    a[:, 0] = b[:, 1]
    a[:, 1] = 2.0
    return a * b


def _out(a, b):
    torch.add(a, b.detach(), out=a)
    return a * b


def _foreach(a, b):
    torch._foreach_mul_([a], 2.0)
    return a + b


def _data(a, b):
    a.data.mul_(3)
    return a + b


def _write_to_both(a, b):
    part = a[:, :2]
    part.mul_(b[:, :2])
    return torch.cat([a, b], 1)


def _tail_branches(a, b):
    return a + b if bool((b > -1e9).all()) else b


def _iterate(a, b):
    first, second, third = a.transpose(0, 1)
    return b + torch.stack([second, first, third], 1)


def _positions_of_rows(a, b):
    rows = torch.arange(len(a))
    return b[rows, 1] * a[:, 0]


# How the front is joined to the tail.
JOINS = {
    "cat": lambda a, b: torch.cat([a, b], 1),
    "cat, last dimension": lambda a, b: torch.cat((a, b), dim=-1),
    "stack": lambda a, b: torch.stack([a, b], 2),
    "concat": lambda a, b: torch.concat([a, b, a], 1),
    "sum": lambda a, b: a + b,
    "add_, result thrown away": _thrown_away,
    "+= and *=": _iadd,
    "+= the front": _other_way,
    "mul_": lambda a, b: a.mul_(b),
    "sub_": lambda a, b: a.sub_(b),
    "relu_": lambda a, b: a.relu_() + b,
    "F.relu(a, True)": lambda a, b: F.relu(a, True) + b + a,
    "out=": _out,
    "_foreach_mul_": _foreach,
    "a.data": _data,
    "a part is overwritten": _write_to_a_part,
    "two parts share a storage": _write_to_both,
    "reshape to the rows of the front": _size_of_the_front,
    "add_ to a view of the front": _add_to_a_view,
    "add_ behind a view of the front": _add_behind_a_view,
    "gather by an index of the front": _gather,
    "mean over the rows of the front": _mean_over_rows,
    "an assertion": _assert_shapes,
    "a choice in the tail": _tail_branches,
    "channels one by one": _iterate,
    "an index made in the tail": _positions_of_rows,
}


@pytest.mark.parametrize("name", JOINS)
def test_no_join_needs_copies(name):
    model = Join(JOINS[name]).double()
    call = make_call(model, draw(1, 2, 3, 4))
    assert not compare(model, "layer", call, lambda output: output.square().sum(1), runs=2)


class Before(Join):
    """A join of what the front has made of its own result."""

    def __init__(self, prepare, join) -> None:
        super().__init__(join)
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        a = self.front(x)
        prepared = self.prepare(a)
        del a
        return self.join(prepared, self.layer(x)).flatten(1)


def _two_views(views, b):
    views[1].mul_(2)
    return b * views[0].view_as(b)


PREPARED = {
    "a view whose tensor is gone": (lambda a: a.flatten(2).mT[:, :, :2], lambda v, b: b.flatten(2) @ v[:, :12]),
    "two views": (lambda a: (a.flatten(2), a[:, 1:]), _two_views),
    "a vector of one float": (lambda a: a.mean((1, 2, 3)), lambda factor, b: b * factor.view(-1, 1, 1, 1)),
    "a number": (lambda a: float(a.abs().max()), lambda number, b: number * b),
    "a list of numbers": (lambda a: a[0, :, 0, 0].tolist(), lambda numbers, b: b * torch.tensor(numbers).view(3, 1, 1)),
    "an array": (lambda a: a[0, :, 0, 0].numpy(), lambda array, b: b * torch.from_numpy(array).view(3, 1, 1)),
    "a choice": (lambda a: a if a.sum() > a.abs().sum() else -a, lambda a, b: a * b),
    "a pair": (lambda a: a.max(1), lambda pair, b: pair.values[:, None] + b * pair.indices[:, None]),
    "without gradients": (lambda a: torch.no_grad()(torch.relu)(a), lambda a, b: a.add_(b)),
    "a number of rows": (lambda a: (len(a), a.shape[0], a.numel()), lambda n, b: b.view(n[0], 3, -1) * n[2] / n[1]),
    "something that is not the sample's": (lambda a: torch.ones(3, 1, 1).double().exp(), lambda w, b: w.mul_(2) * b),
    "sparse": (lambda a: a[0, 0].to_sparse(), lambda a, b: b * a.to_dense()),
}


@pytest.mark.parametrize("name", PREPARED)
def test_what_the_front_hands_to_the_tail(name):
    model = Before(*PREPARED[name]).double()
    assert not compare(
        model, "layer", make_call(model, draw(1, 2, 3, 4)), lambda output: output.square().sum(1), runs=2
    )


# What repeats for one row is not right for all: the witness sees it, and copies of the input are taken.
REFUSED = {
    "an index of rows": (lambda a: torch.arange(len(a)), lambda rows, b: b[rows, 1]),
    "rows in a flat index": (lambda a: a.flatten(1).argsort(1).add(36 * torch.arange(len(a))[:, None]).flatten(), None),
    "an operation that no mode sees": (lambda a: _unseen(a.exp()), lambda a, b: a * b),
}


def _unseen(x):
    with torch._C.DisableTorchFunction():
        return x.sqrt()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_replayed_runs_on_copies(name):
    prepare, join = REFUSED[name]
    model = Before(prepare, join or (lambda index, b: b.flatten()[index].view(b.shape))).double()
    call = make_call(model, draw(1, 2, 3, 4))
    assert compare(model, "layer", call, lambda output: output.square().sum(1), runs=2)
    with evaluating(model):  # also where all variants are the layer's own activation
        tail = Tail(make_site(call, "layer"), call)
        torch.testing.assert_close(tail(tail.activation.expand(4, -1, -1, -1))[1:2], model(*call.inputs))


class Convolutions(TorchDispatchMode):
    """The number of samples in every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("chunks", "size"), [(10, 3), (5, 7)])
@pytest.mark.parametrize(("name", "layer", "behind"), [("resnet18", "layer4", 0), ("densenet121", "features.norm5", 0)])
def test_the_front_runs_once(name, layer, behind, chunks, size):
    model = network(name, torch.float32)
    call = make_call(model, draw(1, 3, 32, 32, dtype=torch.float32))
    with evaluating(model), torch.enable_grad(), Convolutions() as seen:
        model(*call.inputs)
        alone = list(seen.rows)
        tail = Tail(make_site(call, layer), call)
        for _ in range(chunks):
            x = tail.activation.repeat(size, 1, 1, 1).requires_grad_()
            torch.autograd.grad(tail(x).sum(), x)
    assert seen.rows == alone * 2


def test_of_the_tail_every_operation_runs_for_all_rows_at_once():
    model = network("resnet18", torch.float32)
    call = make_call(model, draw(1, 3, 32, 32, dtype=torch.float32))
    with evaluating(model):
        tail = Tail(make_site(call, "layer4.0"), call)
        with Convolutions() as seen:
            tail(tail.activation.expand(9, -1, -1, -1))
    assert seen.rows == [9, 9]  # the two of the last block


def test_nothing_of_the_front_stays_that_the_tail_does_not_use():
    model = UNet()
    storages = {}
    names = {module: name for name, module in model.named_children()}

    def watch(module, args, output):
        with torch._C.DisableTorchFunction():
            storages.setdefault(names[module], StorageWeakRef(output.untyped_storage()))

    for module in names:
        module.register_forward_hook(watch)
    call = make_call(model, torch.randn(1, 2, 6, 8))
    with evaluating(model):
        tail = Tail(make_site(call, "up1"), call)
        gc.collect()
        # What up1 makes is the activation, what up2 makes the output; down1 is joined again behind up1.
        assert {name for name, storage in storages.items() if not storage.expired()} == {"down1", "up1", "up2"}
        output = weakref.ref(tail(tail.activation.expand(3, -1, -1, -1)))
        gc.collect()
        assert output() is None


def test_a_tail_that_overwrites_the_activation_leaves_the_callers_alone():
    model = cases.RESIDUAL.model()
    call = make_call(model, cases.RESIDUAL.input()).rows(torch.tensor([0]))
    kept = [tensor.clone() for tensor in call.inputs]
    for layer in ("norm", "stem"):
        with evaluating(model), torch.enable_grad():
            tail = Tail(make_site(call, layer), call)
            original = tail.activation.clone()
            activations = activations_near(tail.activation)
            before = activations.detach().clone()
            tail(activations)
        with evaluating(model):
            tail(before)
        assert tail.replays
        assert torch.equal(activations, before)
        assert torch.equal(tail.activation, original)
    assert all(map(torch.equal, kept, call.inputs))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(min=0) * (ctx.saved_tensors[0] > 0)


class Counting(ReLUContext):
    """Guided backpropagation that counts the operations it sees."""

    seen = 0

    def __init__(self) -> None:
        super().__init__(_Guided)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        Counting.seen += func is not Tensor.dim
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_inside_a_context(name):
    model = network(name)
    call = make_call(model, draw(1, 3, 32, 32))
    for layer in NETS[name][1:-1]:
        assert not compare(model, layer, call, 1, Counting)


def test_what_is_noted_does_not_reach_the_context():
    model = network("resnet18")
    call = make_call(model, draw(1, 3, 32, 32))
    with evaluating(model):
        tail = Tail(make_site(call, "layer4.1.bn2"), call, context_builder=Counting)
        Counting.seen = 0
        tail(tail.activation.expand(2, -1, -1, -1))
        of_the_tail, Counting.seen = Counting.seen, 0
        with Counting():
            model(*call.inputs)
    assert 0 < of_the_tail < Counting.seen / 5


def test_inside_a_context_that_is_open():
    model = network("resnet18")
    call = make_call(model, draw(1, 3, 32, 32))
    with evaluating(model), torch.enable_grad():
        tail = Tail(make_site(call, "layer3"), call, context_builder=Counting)
        x = activations_near(tail.activation)
        (expected,) = torch.autograd.grad(tail(x)[:, 1].sum(), x)
        with Counting():
            (found,) = torch.autograd.grad(tail.run(x)[:, 1].sum(), x)
        plain = Tail(make_site(call, "layer3"), call)
        assert torch.equal(found, expected)
        assert not torch.equal(torch.autograd.grad(plain(x)[:, 1].sum(), x)[0], expected)


@pytest.mark.parametrize("copies", [False, True])
def test_a_model_that_sets_the_gradient_mode_itself(copies):
    class Frozen(cases.InPlace):
        def forward(self, x):
            with torch.no_grad():
                x = self.features[:4](x)
            return self.classifier(self.features[4](x).mean((2, 3)))

    model = Frozen().double().eval()
    call = make_call(model, draw(1, 3, 6, 8))
    with evaluating(model), torch.enable_grad():
        tail = Tail(make_site(call, "features.3"), call, record_all=True, copies=copies)
        x = activations_near(tail.activation)
        (gradient,) = torch.autograd.grad(tail(x)[:, 1].sum(), x)
        assert torch.is_grad_enabled()
    expected = (x > 0) * model.classifier.weight[1].view(1, -1, 1, 1) / x[0, 0].numel()
    torch.testing.assert_close(gradient, expected.detach())
    assert tail.replays != copies


def test_of_several_tensors_the_first_of_floating_point_is_replaced():
    class Several(nn.Module):
        def forward(self, x):
            return {"index": x.argmax(1), "x": x.relu(), "y": x.exp()}

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Several()

        def forward(self, x):
            found = self.layer(x)
            return found["x"] * found["y"] + found["index"][:, None]

    model, x = Reader(), draw(1, 4)
    call = make_call(model, x)
    with evaluating(model):
        tail = Tail(make_site(call, "layer"), call)
        activations = draw(3, 4, seed=2)
        torch.testing.assert_close(tail(activations), activations * x.exp() + x.argmax(1)[:, None])
        assert tail.replays


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)], ids=str
)
@pytest.mark.parametrize("name", ["resnet50", "vit_b_16"])
def test_rounding_is_no_difference(name, dtype, autocast):
    """Other sizes of batches take other ways to the same sum."""
    model = network(name, dtype)
    call = make_call(model, draw(1, 3, 32, 32, dtype=dtype))
    layer = {"resnet50": "layer3", "vit_b_16": "encoder.layers.encoder_layer_9"}[name]
    with evaluating(model), torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        tail = Tail(make_site(call, layer), call)
        output = tail(tail.activation.repeat(50, *[1] * (tail.activation.ndim - 1)))
        known = model(*call.inputs)
    assert tail.replays
    difference = float((output - known).abs().max() / known.abs().max())
    assert difference < max(torch.finfo(x.dtype).eps for x in (known, tail.activation)) ** (2 / 3)


def test_a_small_difference_is_seen():
    """A term of a thousandth of the output, which is there for one row alone."""

    class Odd(Join):
        def forward(self, x):
            y = self.layer(x).flatten(1)
            return y * 1.001 if len(x) == 1 else y

    model = Odd(None)
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model):
        assert not Tail(make_site(call, "layer"), call).replays


def test_on_a_device_without_values():
    model = network("resnet18", torch.float32).to("meta")
    call = make_call(model, torch.zeros(1, 3, 32, 32, device="meta"))
    with evaluating(model), torch.enable_grad(), Convolutions() as seen:
        tail = Tail(make_site(call, "layer3"), call)
        x = tail.activation.expand(5, -1, -1, -1).clone().requires_grad_()
        assert torch.autograd.grad(tail(x).sum(), x)[0].shape == x.shape
    assert tail.replays
    assert seen.rows == [1] * 20 + [2] * 5 + [5] * 5


def test_the_way_that_fails_is_tried_once():
    class Strict(Join):
        def forward(self, x):
            if len(x) == 5 and self.strict:
                self.strict = False
                raise RuntimeError
            return self.layer(x).flatten(1)

    model = Strict(None)
    model.strict = True
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model):
        tail = Tail(make_site(call, "layer"), call)
        assert tail.replays
        x = torch.randn(5, 3, 3, 4)
        torch.testing.assert_close(tail(x), x.flatten(1))
        assert not tail.replays
        torch.testing.assert_close(tail(x[:2]), x[:2].flatten(1))


def test_an_interruption_is_no_failure():
    class Interrupted(Join):
        def forward(self, x):
            if len(x) == 5:
                raise KeyboardInterrupt
            return self.layer(x).flatten(1)

    model = Interrupted(None)
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model):
        tail = Tail(make_site(call, "layer"), call)
        with pytest.raises(KeyboardInterrupt):
            tail(torch.randn(5, 3, 3, 4))
    assert tail.replays
    assert not model.layer._forward_hooks


def test_an_output_of_the_front_alone_repeats():
    class Auxiliary(Join):
        def forward(self, x):
            return {"out": self.layer(x).flatten(1), "aux": self.front(x).flatten(1)}

    model = Auxiliary(None)
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model):
        tail = Tail(make_site(call, "layer"), call)
        output = tail(torch.randn(5, 3, 3, 4))
        assert tail.replays
        torch.testing.assert_close(output["aux"], model(*call.inputs)["aux"].expand(5, -1))
    assert output["out"].shape == (5, 36)


def test_the_hooks_of_the_user_are_obeyed():
    model = Join(JOINS["sum"])
    seen = []
    model.front.register_forward_hook(lambda module, args, output: seen.append(len(output)) or output * 3)
    model.layer.register_forward_hook(lambda module, args, output: output + 1)
    assert not compare(model.double(), "layer", make_call(model, draw(1, 2, 3, 4)), lambda output: output.sum(1))
    assert {1, 3} <= set(seen)


def test_a_real_error_is_raised():
    model = Join(lambda a, b: a @ torch.zeros(1, 1))
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with evaluating(model), pytest.raises(RuntimeError):
        Tail(make_site(call, "layer"), call)


def test_a_layer_that_is_not_reached():
    model = Join(JOINS["sum"])
    model.other = nn.Identity()
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with (
        evaluating(model),
        pytest.raises(ValueError, match=r"saliency_layer='other' returned no tensor.*expected"),
    ):
        Tail(make_site(call, "other"), call)


def test_a_layer_without_rows_of_images():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(0), nn.Unflatten(0, (1, -1)))
    call = make_call(model, torch.randn(1, 2, 3, 4))
    with (
        evaluating(model),
        pytest.raises(ValueError, match=r"saliency_layer='1' returns \(36,\), not a batch of 1; .*"),
    ):
        Tail(make_site(call, "1"), call)


def test_of_a_layer_used_twice_the_last_call_counts():
    model = cases.TWICE.model()
    call = make_call(model, cases.TWICE.input()).rows(torch.tensor([0]))
    with evaluating(model):
        tail = Tail(make_site(call, "conv"), call)
        activations = torch.cat([tail.activation, tail.activation + 1])
        torch.testing.assert_close(tail(activations), model.classifier(activations.tanh().mean((2, 3))))
        torch.testing.assert_close(tail(activations)[:1], model(*call.inputs))


def test_the_input_side_of_a_layer():
    model = cases.FUNCTIONAL.model()
    call = make_call(model, cases.FUNCTIONAL.input()).rows(torch.tensor([0]))
    site = make_site(call, "conv2", attribute_to_layer_input=True)
    with evaluating(model):
        tail = Tail(site, call)
        output = tail(torch.cat([tail.activation, tail.activation * 2]))
        expected = model.classifier(torch.relu(model.conv2(tail.activation * 2)).mean((2, 3)))
        torch.testing.assert_close(output[:1], model(*call.inputs))
        torch.testing.assert_close(output[1:], expected)
