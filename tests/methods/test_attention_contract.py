"""The contract of methods that need attention: what test_contract.py says of the others, on networks that have it."""

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency.engine.maps import imsmooth
from tests import cases
from tests.cases import ModelCase
from tests.methods.transformers import Transformer
from tests.test_contract import Trap, Untouched, close, device_type, in_threads

pytestmark = cases.NOTICES

SPELLED = ModelCase("spelled out", lambda: Transformer(True), ("blocks.0", "blocks.2"), (4, 5), ((2, 3, 12, 15),))
CASES = (cases.TRANSFORMER, SPELLED)
METHODS = [pytest.param(case, id=case.name) for case in cases.ATTENTION]
TARGETED = [pytest.param(case, id=case.name) for case in cases.ATTENTION if case.uses_target]
# The one that stands for its kind on both networks, the others on one or the other.
on_both = pytest.mark.parametrize(
    ("method", "case"),
    [
        pytest.param(method, case, id=f"{method.name}, {case.name}")
        for at, method in enumerate(cases.ATTENTION)
        for case in (CASES if method.stands_for_its_kind else CASES[at % 2 :][:1])
    ],
)


def explain(method: Any, case: ModelCase, **options: Any) -> Tensor:
    dtype = options.pop("dtype", torch.float64)
    return method(case.model(dtype), case.input(dtype), options.pop("target", 1), **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", [cases.IN_PLACE, cases.CHANNELS_LAST, cases.KEYWORDS], ids=lambda case: case.name)
def test_a_network_without_attention_is_an_error_that_says_so(method, case):
    model, input = case.model(), case.input()
    untouched = Untouched(model, input)
    with pytest.raises(ValueError, match=r"^model=\w+ has no attention; expected a transformer .*\.$"):
        method(model, input, case.target, **case.options(torch.float64))
    untouched.check()


@on_both
def test_the_map(method, case):
    result = explain(method, case)
    assert result.shape == (2, 1, 4, 5)
    assert (result.dtype, result.requires_grad, result.grad_fn) == (torch.float64, False, None)
    assert result.isfinite().all()
    assert result.abs().max() > 0
    assert method.signed or result.min() >= 0
    assert torch.equal(result, explain(method, case))
    for layer in ("", None):
        assert torch.equal(result, explain(method, case, saliency_layer=layer))
    big = explain(method, case, resize=True)
    assert torch.equal(big, F.interpolate(result, (12, 15), mode="bilinear", align_corners=False))
    wide = explain(method, case, resize=(9, 4), resize_mode="nearest", smooth=0.1)
    assert torch.equal(wide, imsmooth(F.interpolate(result, (4, 9)), 0.9, padding_mode="replicate"))
    whole = explain(method, case, reduction=None)
    assert torch.equal(whole[:, 1:], result.flatten(1))
    assert torch.equal(explain(method, case, layout=(4, 5)), result)
    assert torch.equal(explain(method, case, reduction=lambda x: -x), -result)


@on_both
def test_a_batch_is_its_images_one_by_one(method, case):
    together, model, input = explain(method, case), case.model(), case.input()
    for i in range(2):
        close(together[i : i + 1], method(model, input[i : i + 1], 1))


@on_both
def test_targets(method, case):
    """K targets are the K single calls, from one forward pass; and all spellings of one."""
    columns, passes, model = torch.tensor([[0, 2, 0], [1, 3, 3]]), [], case.model()
    model.register_forward_pre_hook(lambda *args: passes.append(1))
    together = method(model, case.input(), columns)
    assert together.shape == (2, 3, 4, 5)
    assert len(passes) == 1 or method.name == "legrad"
    assert explain(method, case, target=columns, reduction=None).shape == (2, 3, 21)
    for k in range(3):
        close(together[:, k : k + 1], explain(method, case, target=columns[:, k]))
    index = torch.tensor([1, 3])
    expected = explain(method, case, target=index)
    gradient = torch.eye(len(case.model()(case.input())[0]), dtype=torch.float64)[index]
    for target in ([1, 3], np.array([1, 3]), index[:, None], gradient, [(1,), (3,)], [lambda y: y[1], lambda y: y[3]]):
        close(explain(method, case, target=target), expected)
    several = explain(method, case, target=lambda y: torch.stack([y[:, 1], y[:, 2]], 1))
    for k in range(2):
        close(several[:, k : k + 1], explain(method, case, target=k + 1))
    assert not method.uses_target or not torch.equal(explain(method, case, target=1), explain(method, case, target=2))


@on_both
def test_modes_of_the_caller(method, case):
    expected = explain(method, case)
    close(method(case.model().requires_grad_(False), case.input(), 1), expected)
    model, input = case.model(), case.input()
    with torch.no_grad():
        assert torch.equal(method(model, input, 1), expected)
    with torch.inference_mode():
        assert torch.equal(method(model, input, 1), expected)
        assert torch.equal(method(model, case.input(), 1), expected)
    close(method(nn.DataParallel(case.model()), input, 1), expected)
    close(method(model, input.to(memory_format=torch.channels_last), 1), expected)
    plain = explain(method, case, dtype=torch.float32)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    with torch.autocast(device_type(), torch.bfloat16):
        cast = explain(method, case, dtype=torch.float32)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0.1, atol=0.15 * float(plain.abs().max()))
    for dtype in (torch.bfloat16, torch.float16):
        half = explain(method, case, dtype=dtype, resize=True, smooth=0.05)
        assert half.dtype == dtype
        assert half.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_after_torch_compile(method):
    torch._dynamo.reset()
    model, input = torch.compile(cases.TRANSFORMER.model(), backend="eager"), cases.TRANSFORMER.input()
    with torch.no_grad():
        model(input)
    untouched = Untouched(model, input)
    result = method(model, input, 1)
    untouched.check()
    assert torch.equal(result, explain(method, cases.TRANSFORMER))
    torch._dynamo.reset()


@on_both
def test_nothing_waits_for_the_device(method, case):
    """The meta device has no values to wait for."""
    model, input = case.model().to("meta"), case.input().to("meta")
    for target in (1, [0, 2], [[0, 1], [2, 3]], lambda y: y[:, 1]):
        result = method(model, input, target, resize=True, smooth=0.05)
        assert result.device.type == "meta"
        assert result.shape == (2, 2 if isinstance(target, list) and isinstance(target[0], list) else 1, 12, 15)


class Delicate(nn.Module):
    """What a careless tool would disturb: modes, random numbers, hooks, gradients, an input that is overwritten."""

    def __init__(self, spelled: bool) -> None:
        super().__init__()
        self.net, self.trap = Transformer(spelled), Trap()
        self.register_buffer("offset", torch.linspace(0, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.trap(self.net(x.add_(torch.rand_like(x)))) + self.offset


MISHAPS: dict[str, tuple[dict[str, Any], type[BaseException] | None]] = {
    "none": ({}, None),
    "K targets": ({"target": [[0, 1], [2, 3]]}, None),
    "resize and smooth": ({"resize": True, "smooth": 0.1}, None),
    "target out of range": ({"target": 5}, ValueError),
    "a layer without attention": ({"saliency_layer": "net.head"}, ValueError),
    "an option": ({"smooth": -1}, ValueError),
    "input": ({"input": torch.randn(2, 1, 12, 15)}, RuntimeError),
    "forward interrupted": ({"forward_error": KeyboardInterrupt()}, KeyboardInterrupt),
    "backward interrupted": ({"backward_error": KeyboardInterrupt()}, KeyboardInterrupt),
}


@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_touched(method, mishap):
    options, error = {**MISHAPS[mishap][0]}, MISHAPS[mishap][1]
    torch.manual_seed(0)
    model = Delicate(method.name in ("attention_rollout", "legrad")).train()
    model.net.norm.eval()
    model(torch.randn(2, 3, 12, 15)).sum().backward()
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: None)
        module.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
    for when in ("forward_error", "backward_error"):
        setattr(model.trap, when, options.pop(when, None))
    untouched = Untouched(model, options.pop("input", torch.randn(2, 3, 12, 15)))
    if error is None:
        result = method(model, untouched.input, **{"target": 1, **options})
        result.fill_(7)
    else:
        with pytest.raises(error):
            method(model, untouched.input, **{"target": 1, **options})
    untouched.check()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_memory_is_free_after_a_call(case):
    """All methods at once: to look at every object takes longer than the methods do."""
    model, input = case.model(), case.input()

    def leaves(known: set[int]) -> list[Tensor]:
        for method in cases.ATTENTION:
            method(model, input, 1)
        gc.collect()
        return [x for x in gc.get_objects() if issubclass(type(x), Tensor) and id(x) not in known]

    before = leaves(set())
    assert [x.shape for x in leaves({id(x) for x in before})] == []


@pytest.mark.parametrize("method", METHODS)
def test_two_threads_on_one_model(method):
    model, input = SPELLED.model(), SPELLED.input()
    inputs = [input, -input]
    expected = [method(model, x, 1) for x in inputs]
    barrier = threading.Barrier(2)

    def meet(module: nn.Module, args: object) -> None:
        barrier.wait(20)

    hook = model.blocks[1].register_forward_pre_hook(meet)
    found = in_threads(*(lambda x=x: method(model, x, 1) for x in inputs))
    hook.remove()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_pass(method):
    model, input, passes = SPELLED.model(), SPELLED.input(), []
    shared = saliency.shared_forward(model, input, ["", "blocks.0"])
    model.register_forward_pre_hook(lambda *args: passes.append(1))
    for target in (1, [2, 0], [[0, 1], [2, 3]]):
        found = method(model, input, target, shared=shared)
        assert not passes or method.name == "legrad"
        close(found, method(model, input, target))
        passes.clear()
    saliency.guided_backprop(model, input, 1, shared=shared)  # another table in force
    close(method(model, input, 1, shared=shared), method(model, input, 1))
    passes.clear()
    at_layer = saliency.shared_forward(model, input, ["blocks.0"])  # leaves no graph in front of it
    passes.clear()
    close(method(model, input, 1, shared=at_layer), method(model, input, 1))


@pytest.mark.parametrize("method", METHODS)
def test_arguments_that_mean_nothing(method):
    model, input = SPELLED.model(), SPELLED.input()
    for options, words in (
        ({"saliency_layer": ["blocks.0"]}, r"saliency_layer=.*not one layer; expected the one.*start_layer"),
        (
            {"saliency_layer": "blocks.0.mlp"},
            r"saliency_layer='blocks.0.mlp' holds no attention; expected one of blocks",
        ),
        (
            {"saliency_layer": "block"},
            r"saliency_layer='block' is not a layer of the model \(did you mean 'blocks'\?\)",
        ),
        ({"shared": 3}, r"shared=3 is not a recorded pass; expected"),
        ({"reduction": 3}, r"reduction=3 is not a reduction; expected"),
        ({"smoth": 1}, r"smoth=1 is not an option \(did you mean 'smooth'\?\)"),
        ({"debug": True}, r"debug=True is not an option"),
        ({"forward_kwargs": [1]}, r"forward_kwargs=\[1\] is not a mapping"),
    ):
        with pytest.raises(ValueError, match=rf"^{words}.*\.$"):
            method(model, input, 1, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_score_that_no_attention_leads_to(method):
    """On another output, or where the network computes without gradients."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = Transformer(False), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(x.mean((2, 3))), self.net(x)

    torch.manual_seed(0)
    model, input = Frozen().eval(), torch.randn(2, 3, 12, 15)
    with pytest.raises(ValueError, match=r"^model=Frozen has no attention between the image and the score"):
        method(model, input, 1)
    assert method(model, input, lambda outputs: outputs[1][:, 1]).shape == (2, 1, 4, 5)
    model.net.requires_grad_(False)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model.net

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.net(x)

    with pytest.raises(ValueError, match=r"^model=Hidden has no attention between the image and the score"):
        method(Hidden(), input, 1)
