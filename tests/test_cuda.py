"""What holds on a GPU and could fail on no CPU: maps stay there, nothing waits, no memory is kept. Skipped without one.

The contract itself runs there with ``python -m pytest tests/test_contract.py --device cuda``.
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency.evaluation.datasets import load_dataset
from saliency.evaluation.metrics import METRICS
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import read_results
from saliency.networks.models import preprocessing
from saliency.scenes import scene_network
from tests import cases
from tests.cases import METHOD_CASES, MethodCase

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),  # if the first product is one of a backward pass
    cases.NOTICES,
]

METHODS = [pytest.param(case, id=case.name) for case in METHOD_CASES]
# Draw on the device, other numbers than on the CPU; and the one whose start depends on the order of ties in a sort.
SEEDED = [case.name for case in METHOD_CASES if "seed" in signature(saliency.METHODS[case.name].function).parameters]
DRAWN = (*SEEDED, "extremal_perturbation")
# Whose work depends on what an earlier part of it found, and those whose decomposition of a matrix waits in PyTorch.
WAIT = ("scores", "masks", "search", "eigen_cam", "eigen_grad_cam", "kpca_cam")


def on(device: str, method: MethodCase, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    case = cases.TRANSFORMER if method.kind == "attention" else cases.IN_PLACE
    return case.model(dtype).to(device), case.input(dtype).to(device)


@pytest.fixture
def precise() -> Iterator[None]:
    """Convolutions without TF32, and the same algorithm each time."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("method", METHODS)
def test_the_map_is_on_the_device_and_that_of_the_cpu(method):
    found = method(*on("cuda", method), 1, resize=True, smooth=0.05)
    assert (found.device.type, found.dtype) == ("cuda", torch.float64)
    expected = method(*on("cuda" if method.name in DRAWN else "cpu", method), 1, resize=True, smooth=0.05).cpu()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method, dtype):
    found = method(*on("cuda", method, dtype), 1)
    assert (found.dtype, bool(found.isfinite().all())) == (dtype, True)
    if method.name not in (*DRAWN, "feature_ablation", "fem", "kpca_cam"):
        expected = method(*on("cuda", method), 1)
        close = F.cosine_similarity(found.double().flatten(1), expected.flatten(1))
        assert close.min() > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_autocast(method):
    model, input = on("cuda", method, torch.float32)
    with torch.autocast("cuda", torch.float16):
        found = method(model, input, 1, resize=True)
    assert (found.dtype, bool(found.isfinite().all())) == (torch.float32, True)


@contextmanager
def no_waiting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "method", [pytest.param(case, id=case.name) for case in METHOD_CASES if not {case.kind, case.name} & set(WAIT)]
)
def test_nothing_waits_for_the_device(method):
    """From the second call on, when the layer is known."""
    model, input = on("cuda", method)
    for target in (1, [1, 2], torch.tensor([[0, 1], [2, 3]])):
        method(model, input, target)
        with no_waiting():
            method(model, input, target)


def test_buffers_are_given_back_without_waiting():
    class Counting(cases.InPlace):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            return self.scores(x)

    model, input = Counting().double().eval().cuda(), cases.IN_PLACE.input().cuda()
    saliency.grad_cam(model, input, 1)
    with no_waiting():
        saliency.grad_cam(model, input, 1)
    assert model.passes.item() == 0


@pytest.mark.parametrize("method", METHODS)
def test_no_memory_is_kept(method):
    model, input = on("cuda", method)

    def held() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    method(model, input, 1)
    method(model, input, 1)
    before = held()
    for _ in range(3):
        method(model, input, 1)
    assert held() == before


@pytest.mark.usefixtures("precise")
def test_the_random_state_of_the_device_is_given_back():
    model, input = cases.STOCHASTIC.model().cuda(), cases.STOCHASTIC.input().cuda()
    before = torch.cuda.get_rng_state()
    first = saliency.gradient(model, input, 1)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(saliency.gradient(model, input, 1), first)


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(recurrent):
    """cuDNN's have no backward pass in evaluation mode."""
    rnn, head = recurrent(3, 5, batch_first=True), nn.Linear(5, 2)
    model = cases.Net(lambda s, x: s.head(s.rnn(x)[0].mean(1)), rnn=rnn, head=head)
    input = torch.randn(2, 7, 3)
    expected = saliency.gradient(model, input, 1)
    found = saliency.gradient(model.cuda(), input.cuda(), 1)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-6)
    assert torch.backends.cudnn.enabled


def test_another_device_is_an_error():
    model, input = on("cuda", METHOD_CASES[0])
    for call in (lambda: saliency.gradient(model, input.cpu(), 1), lambda: saliency.gradient(model.cpu(), input, 1)):
        with pytest.raises(ValueError, match=r"^input=a tensor of .* is on (cpu|cuda:0), the model on (cuda:0|cpu);"):
            call()


@pytest.mark.usefixtures("precise")
def test_targets_may_be_on_either_device():
    model, input = on("cuda", METHOD_CASES[0])
    for target in (torch.tensor([1, 2]), torch.tensor([[0, 1], [2, 3]]), torch.eye(4, dtype=torch.float64)[[1, 2]]):
        assert torch.equal(saliency.gradient(model, input, target), saliency.gradient(model, input, target.cuda()))


def test_a_stream_of_the_caller():
    model, input = on("cuda", METHOD_CASES[0])
    expected = saliency.grad_cam(model, input, 1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = saliency.grad_cam(model, input, 1)
    stream.synchronize()
    torch.testing.assert_close(found, expected)


def test_a_compiled_network():
    model, input = on("cuda", METHOD_CASES[0], torch.float32)
    expected = saliency.grad_cam(model, input, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model)
        compiled(input)
    torch.testing.assert_close(saliency.grad_cam(compiled, input, 1), expected)


def test_data_parallel():
    model, input = on("cuda", METHOD_CASES[0])
    expected = saliency.grad_cam(model, input, 1)
    torch.testing.assert_close(saliency.grad_cam(nn.DataParallel(model), input, 1), expected)


def test_a_map_of_zeros_is_told_by_a_later_call():
    model = cases.Net(lambda s, x: s.head(s.conv(x).mean((2, 3))), conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 2)).cuda()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 4))
        model.conv.weight.abs_()
        model.conv.bias.fill_(1)
    input = torch.rand(1, 3, 8, 8, device="cuda")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        saliency.grad_cam(model, input, 0, "conv")
        torch.cuda.synchronize()
        saliency.grad_cam(model, input, 1, "conv")
    assert any("zero everywhere" in str(each.message) for each in told)


@pytest.mark.usefixtures("precise")
def test_a_run_gives_the_scores_of_the_cpu(tmp_path):
    """By every metric."""
    scores: list[dict[Any, float]] = []
    for device in ("cpu", "cuda"):
        chosen = {name: (saliency.METHODS[name].function, {}) for name in ("grad_cam", "gradient")}
        metrics = {name: {} for name in METRICS}
        data = load_dataset("scenes", scenes=3)
        run(data, scene_network().to(device), preprocessing("scenes"), chosen, metrics, tmp_path / device, gallery=0)
        rows = read_results(tmp_path / device)
        scores.append({(*row.case, row.method, row.metric): row.score for row in rows if row.error is None})
    cpu, cuda = scores
    assert cpu.keys() == cuda.keys()
    assert cpu
    different = [key for key, score in cpu.items() if abs(score - cuda[key]) > 0.02]
    assert len(different) <= 0.02 * len(cpu), different


def test_a_photo_is_explained_on_the_device():
    found = saliency.explain(scene_network().cuda(), torch.rand(3, 64, 64), 1, methods=("grad_cam", "gradient"))
    assert all(isinstance(each, Tensor) and each.device.type == "cuda" for each in found.maps.values())
