"""What the caller owns: hooks, attributes, caches, random numbers, contexts, and what else a call must leave alone."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import _get_current_function_mode_stack

import saliency
from saliency.engine import state

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (".*weight_norm.*is deprecated", "`torch.jit", "FSDP is switching to use", ".*is deprecated.*FSDP")
]


def small() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    return net.eval()


X = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def autograd(score, x: Tensor = X) -> Tensor:
    """max |dx| of a function's scores."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(score(x.clone()).sum(), x)[0].abs().amax(1, keepdim=True)


# --- hooks of the caller's ------------------------------------------------------------------------------------------


def by_args(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, args: (args[0] / 0.25,))


def by_kwargs(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] - 0.5,), kwargs), with_kwargs=True)
    model.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 4,), kwargs), with_kwargs=True)


def in_place(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, args: (args[0].sub_(0.5).div_(0.25),), prepend=True)


@pytest.mark.parametrize("hook", [by_args, by_kwargs, in_place])
def test_the_input_is_what_the_caller_passed(hook):
    """In front of hooks that normalise it, whoever looks: a map, a shared pass, a list of layers, a probe."""
    model = small()
    hook(model)
    expected = autograd(lambda x: model(x)[:, 1])
    torch.testing.assert_close(saliency.gradient(model, X, 1), expected)
    torch.testing.assert_close(saliency.gradient(model, X, 1, ["0", ""])[1], expected)
    shared = saliency.shared_forward(model, X, ["", "2"])
    torch.testing.assert_close(saliency.gradient(model, X, 1, shared=shared), expected)
    maps, probes = saliency.gradient(model, X, 1, debug=True)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(probes[""].data[0], X)
    torch.testing.assert_close(probes[""].data[0].grad.abs().amax(1, keepdim=True), expected)
    _, delta = saliency.integrated_gradients(model, X, 1, n_steps=64, return_convergence_delta=True)
    assert delta.abs().max() < 0.05


# --- tensors in attributes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.spectral_norm, lambda m: prune.random_unstructured(m, "weight", 0.5)]
)
@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "integrated_gradients", "feature_ablation"])
def test_weights_that_hooks_make_are_put_back(method, norm):
    model = small()
    norm(model[2])
    norm(model[5])
    with torch.no_grad():
        expected = model(X)  # makes the weights anew, without a graph
    kept = [model[2].weight, model[5].weight, model[2].weight.clone()]
    getattr(saliency, method)(model, X, 1, "0")
    assert model[2].weight is kept[0]
    assert model[5].weight is kept[1]
    assert torch.equal(model[2].weight, kept[2])
    assert not model[2].weight.requires_grad
    torch.testing.assert_close(copy.deepcopy(model)(X), expected)


class Recurrent(nn.Module):
    """Remembers what it saw, as a network for video does, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv, self.fc = way, nn.Conv2d(1, 2, 3), nn.Linear(2, 3)
        self.state: Tensor | None = None
        self.pair: tuple = ()
        self.seen: list = []
        self.cache: dict = {"calls": 0}
        self.inplace = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).tanh()
        mean = y.mean((2, 3))
        if self.way == "tensor":
            self.state = mean.mean(0) if self.state is None else self.state + mean.mean(0)
            mean = mean * self.state.sum()
        elif self.way == "pair":
            self.pair = (*self.pair, mean)
            mean = mean * len(self.pair)
        elif self.way == "list":
            self.seen.append(mean.detach())
            mean = mean * len(self.seen)
        elif self.way == "dict":
            mean = mean * self.cache.setdefault("mean", mean.sum().detach() + 5)
        elif self.way == "new":
            mean = mean * getattr(self, "late", torch.ones(()))
            self.late = mean.sum()
        else:
            self.inplace += mean.detach().sum(0)
            mean = mean * self.inplace
        return self.fc(mean)


@pytest.mark.parametrize("way", ["tensor", "pair", "list", "dict", "new", "in place"])
def test_what_a_network_remembers_is_put_back(way):
    model = Recurrent(way).eval()
    first = saliency.gradient(model, X, 1)
    assert torch.equal(saliency.gradient(model, X, 1), first)
    assert first.abs().sum() > 0
    assert (model.state, model.pair, model.seen, model.cache) == (None, (), [], {"calls": 0})
    assert not hasattr(model, "late")
    assert model.inplace.tolist() == [0, 0]
    model(X)
    kept = [*vars(model).items()]
    saliency.grad_cam(model, X, 1, "conv")
    saliency.occlusion(model, X, 1)
    assert all(vars(model)[name] is value for name, value in kept)


@pytest.mark.parametrize("kept", ["attribute", "buffer", "dict", "in place", "buffer in place"])
def test_a_cache_is_put_back_with_the_size_that_it_was_made_for(kept):
    """As in detectors, which make their anchors anew when the size of the input changes."""

    class Anchored(nn.Module):
        shape: torch.Size | None = None

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.anchors = torch.zeros(0)
            self.register_buffer("positions", torch.zeros(0))
            self.cache: dict = {}

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if self.shape != y.shape[2:]:
                made = torch.arange(1.0, y[0, 0].numel() + 1).view(y.shape[2:])
                self.shape = y.shape[2:]
                if kept == "attribute":
                    self.anchors = made
                elif kept == "buffer":
                    self.positions = made
                elif kept == "dict":
                    self.cache["anchors"] = made
                else:
                    own = self.anchors if kept == "in place" else self.positions
                    own.resize_(made.shape).copy_(made)
            found = self.positions if "buffer" in kept else self.cache.get("anchors", self.anchors)
            return (y * found).sum((2, 3))

    model = Anchored().eval()
    first = saliency.gradient(model, X, 1)
    assert torch.equal(saliency.gradient(model, X, 1), first)
    assert model.shape is None
    scores = model(torch.rand(1, 1, 9, 9))
    assert torch.equal(saliency.gradient(model, X, 1), first)
    assert model.shape == (7, 7)
    assert model(torch.rand(1, 1, 9, 9)).shape == scores.shape


def test_a_dict_that_cannot_be_written_to_stays_as_it_is():
    class Frozen(dict):
        def __setitem__(self, *given: object) -> None:
            raise TypeError("frozen")

        update = clear = __delitem__ = __setitem__

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.config = nn.Conv2d(1, 2, 3), Frozen(a=1)

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.conv(x)
            return self.last.sum((2, 3))

    model = Keeping()
    saliency.gradient(model, X, 1)
    assert not hasattr(model, "last")
    assert model.config == {"a": 1}


def test_what_is_no_tensor_stays():
    """A counter of the caller's own goes on counting."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.flatten(1)

    model = Counting()
    saliency.gradient(model, X, 1)
    assert model.calls == 1


# --- views made before the layer, and written to behind it -----------------------------------------------------------


class Coupled(nn.Module):
    """Two halves of an activation, one of which is added to the other, as in a reversible network."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace, self.stem, self.between, self.fc = (
            inplace,
            nn.Conv2d(1, 4, 3),
            nn.Conv2d(2, 2, 1),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        halves = self.stem(x)
        first, second = halves[:, :2], halves[:, 2:]
        y = self.between(first).relu()
        if self.inplace:
            second += y
        else:
            second = second + y
        return self.fc(torch.cat([first, second], 1).mean((2, 3)))


@pytest.mark.parametrize("explain", ["itself", "of a shared pass"])
@pytest.mark.parametrize("name", ["grad_cam", "excitation_backprop", "lrp", "conductance", "ablation_cam"])
def test_a_model_that_writes_to_an_earlier_view(name, explain):
    of = []
    torch.manual_seed(0)
    state = {name: weight.abs() for name, weight in Coupled(True).state_dict().items()}
    for inplace in (True, False):
        model = Coupled(inplace).eval()
        model.load_state_dict(state)
        options = {}
        if explain != "itself":
            if "shared" not in saliency.METHODS[name].options or name == "conductance":
                pytest.skip("it has passes of its own")
            options["shared"] = saliency.shared_forward(model, X, ["between"])
        of.append(getattr(saliency, name)(model, X, 1, "between", **options))
    assert of[0].any()
    torch.testing.assert_close(of[0], of[1])


# --- models of other kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_a_frozen_model_is_explained_or_refused_in_one_line(freeze):
    model = small()
    frozen = freeze(torch.jit.script(model))
    with pytest.raises(ValueError, match=r"model=TorchScript does not accept hooks; expected the original nn\.Module"):
        saliency.gradient(frozen, X, 1)
    with pytest.raises(ValueError, match="TorchScript"):
        saliency.guided_backprop(frozen, X, 1)
    torch.testing.assert_close(saliency.occlusion(frozen, X, 1), saliency.occlusion(model, X, 1))


def test_an_exported_program():
    model = small()
    fixed = torch.export.export(model, (X,)).module()
    torch.testing.assert_close(saliency.gradient(fixed, X, 1), autograd(lambda x: model(x)[:, 1]))
    with pytest.raises(ValueError, match=r"program that does not accept 100 samples .*expected dynamic_shapes"):
        saliency.integrated_gradients(fixed, X, 1)
    any_batch = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("n", max=256)},)).module()
    for name in ("integrated_gradients", "occlusion"):
        explain = getattr(saliency, name)
        torch.testing.assert_close(explain(any_batch, X, 1), explain(model, X, 1))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
@pytest.mark.parametrize("nested", [False, True])
def test_sharded_models_have_the_layers_that_they_are_made_of(nested, tmp_path):
    from torch.distributed.fsdp import FullyShardedDataParallel

    model, cpu = small(), torch.device("cpu")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = copy.deepcopy(model)
        if nested:
            sharded[2] = FullyShardedDataParallel(sharded[2], device_id=cpu)
        sharded = FullyShardedDataParallel(sharded, device_id=cpu)
        for layer in ("", "0", "2", None):
            torch.testing.assert_close(
                saliency.linear_approx(sharded, X, 1, layer), saliency.linear_approx(model, X, 1, layer)
            )
        with pytest.raises(ValueError, match="did you mean '2'"):
            saliency.gradient(sharded, X, 1, "22")
        sharded(X).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["gradient", "grad_cam", "occlusion"])
def test_inside_cached_parametrizations_the_next_backward_pass_has_its_gradients(method):
    def gradients(explain: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = small()
        parametrizations.weight_norm(model[2])
        parametrizations.orthogonal(model[5])
        with parametrize.cached():
            if explain:
                getattr(saliency, method)(model, X, 1)
            loss = model(X).square().sum()
            if explain:
                getattr(saliency, method)(model, X, 1)
            (loss + model(X).sum()).backward()
        return [parameter.grad for parameter in model.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_on_cuda_run_without_cudnn(layer):
    """Its backward pass needs training mode. Here the device is made up; tests/test_cuda.py has a real one."""
    modules, cuda, cpu = [nn.ReLU(), layer(2, 3)], torch.device("cuda"), torch.device("cpu")
    before = torch.backends.cudnn.enabled
    with state._holding(modules, cuda):
        assert not torch.backends.cudnn.enabled
        with state._holding(modules, cuda):
            pass
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled is before
    for others in (modules[:1], [nn.LSTMCell(2, 3)]):
        with state._holding(others, cuda):
            assert torch.backends.cudnn.enabled is before
    with state._holding(modules, cpu):
        assert torch.backends.cudnn.enabled is before


# --- heads that overwrite -------------------------------------------------------------------------------------------


def scaled(y: Tensor) -> Tensor:
    y = y.sigmoid()
    y[..., :2] = y[..., :2] * 2
    return y


def masked(y: Tensor) -> Tensor:
    y = y.exp()
    y.masked_fill_(y < 0.5, 0)
    return y


def shifted(y: Tensor) -> Tensor:
    y = y.softmax(1)
    y.mul_(3).add_(y.tanh())
    return y


@pytest.mark.parametrize("head", [scaled, masked, shifted])
def test_heads_that_write_into_what_autograd_has_saved(head):
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()

        def forward(self, x: Tensor) -> Tensor:
            return head(self.body(x))

    model = Headed().eval()
    with allow_mutation_on_saved_tensors():
        expected = autograd(lambda x: model(x)[:, 1])
    assert expected.abs().sum() > 0
    torch.testing.assert_close(saliency.gradient(model, X, 1), expected)
    torch.testing.assert_close(saliency.gradient(model, X, 1, ["body.2", ""])[1], expected)
    shared = saliency.shared_forward(model, X, ["", "body.2"])
    torch.testing.assert_close(saliency.gradient(model, X, 1, shared=shared), expected)
    _, delta = saliency.integrated_gradients(model, X, 1, "body.2", n_steps=64, return_convergence_delta=True)
    assert head is masked or delta.abs().max() < 1e-2
    for name in ("grad_cam", "guided_backprop", "excitation_backprop"):
        assert getattr(saliency, name)(model, X, 1).isfinite().all()
    assert saliency.extremal_perturbation(model, X, 1, max_iter=2)[0].isfinite().all()
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


# --- calls inside of calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["gradient", "guided_backprop", "deconvnet"])
@pytest.mark.parametrize("inner", ["gradient", "guided_backprop", "deconvnet"])
def test_a_call_inside_of_a_call(outer, inner):
    """In a reduction, in a target, in a hook of the model that is explained: each has its own rules alone."""
    model, other = small(), small()
    alone = [getattr(saliency, inner)(net, X, 1) for net in (model, other)]
    context = {"guided_backprop": saliency.GuidedBackpropContext, "deconvnet": saliency.DeConvNetContext}
    options = {"context_builder": context[outer]} if outer in context else {}
    expected = getattr(saliency, outer)(model, X, 1)
    found = []

    def call(*args: object) -> None:
        found.append([getattr(saliency, inner)(net, X, 1) for net in ((other,) if args else (model, other))])

    def reduce(x: Tensor) -> Tensor:
        call()
        return x.grad.abs().amax(1, keepdim=True)

    def target(output: Tensor) -> Tensor:
        call()
        return output[:, 1]

    assert torch.equal(saliency.saliency(model, X, 1, gradient_to_saliency=reduce, **options), expected)
    assert torch.equal(saliency.saliency(model, X, target, **options), expected)
    with model[1].register_forward_hook(call):
        assert torch.equal(saliency.saliency(model, X, 1, **options), expected)
    assert len(found) == 3
    for maps in found:
        assert all(map(torch.equal, maps, alone if len(maps) == 2 else alone[1:]))


@pytest.mark.parametrize("layer", ["", "0"])
def test_a_context_around_a_call_applies(layer):
    model = small()
    with saliency.GuidedBackpropContext():
        around = saliency.gradient(model, X, 1, layer)
        nested = saliency.saliency(
            model, X, 1, layer, gradient_to_saliency=lambda x: saliency.gradient(model, X, 1, layer)
        )
    assert torch.equal(around, saliency.guided_backprop(model, X, 1, layer))
    assert torch.equal(nested, around)
    assert not torch.equal(around, saliency.gradient(model, X, 1, layer))
    assert not _get_current_function_mode_stack()


def test_a_context_that_is_open_around_a_call_and_used_by_it():
    model, context = small(), saliency.DeConvNetContext()
    with context:
        used = saliency.saliency(model, X, 1, context_builder=lambda: context)
        after = saliency.gradient(model, X, 1)
    assert torch.equal(used, saliency.deconvnet(model, X, 1))
    assert torch.equal(after, used)
    assert not _get_current_function_mode_stack()


def test_an_error_that_is_kept_keeps_nothing_open():
    """Its traceback holds the frames of the call: rules and hooks end with the call, not with the frames."""
    model = small()

    def fail(x: Tensor) -> Tensor:
        raise LookupError

    with pytest.raises(LookupError) as kept:
        saliency.saliency(model, X, 1, ["", "2"], context_builder=saliency.DeConvNetContext, gradient_to_saliency=fail)
    assert not _get_current_function_mode_stack()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert kept.value.__traceback__ is not None


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_of_many_samples_are_taken_in_float32(dtype):
    """The mean of a constant is the constant, however many there are."""
    smoothed = saliency.smooth_grad(lambda model, x, target: torch.full((1, 1), 0.7, dtype=dtype), n_samples=3000)
    found = smoothed(None, torch.zeros(1, 3), 0)
    assert found.dtype == dtype
    assert found.item() == torch.full((), 0.7, dtype=dtype).item()
    model = nn.Linear(4, 2).to(dtype)
    x = torch.rand(1, 4, dtype=dtype)
    path = saliency.smooth_gradient(model, x, 1, n_samples=600, internal_batch_size=2)
    assert path.dtype == dtype
    torch.testing.assert_close(path, model.weight[1].abs().detach().amax().expand_as(path), rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_numpy_integers_are_integers(kind):
    model = small()
    one, two = kind(1), kind(2)
    pairs = [
        (
            saliency.smooth_grad(saliency.gradient, n, s, seed=n)(model, X, n)
            for n, s in ((2, 0.25), (two, np.float32(0.25)))
        ),
        (saliency.occlusion(model, X, n, perturbations_per_eval=n, resize=(n, n)) for n in (2, two)),
        (saliency.integrated_gradients(model, X, n, n_steps=n, internal_batch_size=n) for n in (2, two)),
        (saliency.smooth_gradient(model, X, n, n_samples=n, seed=n) for n in (2, two)),
        (saliency.gradient(model, X, [n, n], "0", call=n - n) for n in (2, two)),
        (saliency.feature_permutation(model, X, n, seed=n) for n in (1, one)),
        (saliency.rise(model, X, n, num_masks=n, batch_size=n, seed=n) for n in (2, two)),
        (saliency.extremal_perturbation(model, X, n, max_iter=n, seed=n)[0] for n in (2, two)),
    ]
    for plain, numpy in pairs:
        assert torch.equal(plain, numpy)


# --- a pass that is kept --------------------------------------------------------------------------------------------


def replace_parameter(model: nn.Sequential) -> None:
    model[5].weight = nn.Parameter(model[5].weight.detach() * 2)


def replace_buffer(model: nn.Sequential) -> None:
    model[6].register_buffer("running_var", torch.full((3,), 4.0))


def replace_module(model: nn.Sequential) -> None:
    model[0] = nn.Conv2d(1, 3, 3)


def give_data(model: nn.Sequential) -> None:
    model[2].weight.data = model[2].weight.data * 3


def overwrite(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[2].weight.mul_(3)


@pytest.mark.parametrize("change", [replace_parameter, replace_buffer, replace_module, give_data, overwrite])
def test_a_kept_pass_notices_that_the_model_has_changed(change):
    model = nn.Sequential(*small(), nn.BatchNorm1d(3)).eval()
    shared = saliency.shared_forward(model, X)
    before = saliency.gradient(model, X, 1, shared=shared)
    change(model)
    after = saliency.gradient(model, X, 1, shared=shared)
    torch.testing.assert_close(after, autograd(lambda x: model(x)[:, 1]))
    assert not torch.allclose(before, after)


# --- other threads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand(()).item(), lambda: float(np.random.rand()), lambda: nn.init.normal_(torch.empty(1)).item()],
)
def test_a_call_in_another_thread_does_not_rewind_random_numbers(draw):
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            inside.wait(10)
            go_on.wait(10)
            return x.flatten(1)

    inside, go_on = threading.Barrier(2), threading.Event()
    thread = threading.Thread(target=lambda: saliency.gradient(Slow(), X, 1))
    thread.start()
    inside.wait(10)
    first = draw()
    go_on.set()
    thread.join(10)
    assert draw() != first


def test_a_model_whose_head_was_built_inside_inference_mode_is_refused_in_one_sentence():
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten())
    with torch.inference_mode():
        head = nn.Linear(18, 2)
    with pytest.raises(ValueError, match="built inside inference_mode"):
        saliency.gradient(nn.Sequential(body, head), torch.rand(1, 1, 5, 5), 1)
    with pytest.raises(ValueError, match="built inside inference_mode"):
        saliency.grad_cam(nn.Sequential(body, head), torch.rand(1, 1, 5, 5), 1)
