"""CAMs by components and outliers, against their papers' formulas, and the rule for signs."""

import math

import pytest
import torch
from torch import Tensor, nn

import saliency
from saliency.methods.components import KERNELS
from tests.methods.test_cam import positions

METHODS = {"eigen_cam": saliency.eigen_cam, "kpca_cam": saliency.kpca_cam, "fem": saliency.fem}


def matrix(x: Tensor) -> Tensor:
    """Of one sample's activation (C, h, w) the positions (L, C), read one by one."""
    return torch.stack([x[:, i, j] for i, j in positions(x[None])])


def centred(rows: Tensor) -> Tensor:
    return torch.stack([row - sum(rows) / len(rows) for row in rows])


def strong(values: Tensor, rows: Tensor) -> Tensor:
    """The sign by which a component is positive where the rows are long."""
    total = sum(float(value) * sum(float(entry) ** 2 for entry in row) for value, row in zip(values, rows, strict=True))
    return values * math.copysign(1, total)


def as_map(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, 1, *x.shape[-2:])


def singular(rows: Tensor) -> Tensor:
    """The rows times their first right singular vector, by its definition: the direction of the largest sum of squares.

    Found by taking powers of the matrix.
    """
    v = torch.ones(rows.shape[1], dtype=rows.dtype)
    for _ in range(3000):
        v = rows.T @ (rows @ v)
        v = v / v.norm()
    return rows @ v


@pytest.mark.parametrize("name", ["eigen_cam", "eigen_grad_cam"])
def test_the_first_singular_vector(case, name):
    model, input, x, dx = case
    found = saliency.METHODS[name].function(model, input, [4, 1], "layer")
    for n in range(2):
        rows = matrix(x[n]) if name == "eigen_cam" else centred(matrix(x[n] * dx[n]))
        expected = as_map(strong(singular(rows), rows), x)
        torch.testing.assert_close(found[n : n + 1], expected, rtol=1e-6, atol=1e-8)


def sums(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


OF_TWO = {
    "linear": lambda a, b, gamma: sums(a, b),
    "poly": lambda a, b, gamma: (gamma * sums(a, b) + 1) ** 3,
    "rbf": lambda a, b, gamma: math.exp(-gamma * sums(a - b, a - b)),
    "sigmoid": lambda a, b, gamma: math.tanh(gamma * sums(a, b) + 1),
    "cosine": lambda a, b, gamma: sums(a, b) / math.sqrt(sums(a, a) * sums(b, b)),
}


@pytest.mark.parametrize("gamma", [None, 0.7])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_pca(case, kernel, gamma):
    """Schölkopf et al. 1998: centred in the space of the kernel, the first eigenvector times the root of its value."""
    model, input, x, _ = case
    found = saliency.kpca_cam(model, input, None, "layer", kernel=kernel, gamma=gamma)
    for n in range(2):
        rows = centred(matrix(x[n]))
        scale = 1 / x.shape[1] if gamma is None else gamma
        k = torch.tensor([[OF_TWO[kernel](a, b, scale) for b in rows] for a in rows], dtype=x.dtype)
        size = len(rows)
        hat = torch.tensor(
            [
                [k[i, j] - k[i].sum() / size - k[j].sum() / size + k.sum() / size**2 for j in range(size)]
                for i in range(size)
            ],
            dtype=x.dtype,
        )
        component = found[n].flatten()
        value = float(component @ hat @ component / (component @ component))
        torch.testing.assert_close(hat @ component, value * component, rtol=1e-7, atol=1e-9)  # an eigenvector
        assert math.isclose(float(component @ component), value, rel_tol=1e-9)  # as long as the root of its value
        assert value >= float(torch.linalg.eigvalsh(hat).max()) * (1 - 1e-9)  # which is the largest
        torch.testing.assert_close(strong(component, rows), component)
    if kernel == "linear":
        expected = as_map(strong(singular(rows), rows), x)
        torch.testing.assert_close(found[1:], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("k", [0, 1.5])
def test_what_is_far_above_its_mean(case, k):
    model, input, x, _ = case
    found = saliency.fem(model, input, None, "layer", k=k)
    expected = torch.zeros(2, 1, *x.shape[2:], dtype=x.dtype)
    for n in range(2):
        for c in range(x.shape[1]):
            values = [float(x[n, c, i, j]) for i, j in positions(x)]
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
            for i, j in positions(x):
                if float(x[n, c, i, j]) > mean + k * deviation:
                    expected[n, 0, i, j] += mean
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("turned", [False, True])
def test_the_sign_shows_what_is_strong(turned):
    """An object on an even background, whose channels are higher there, or lower: it is positive in both."""
    x = torch.randn(1, 6, 9, 9, generator=torch.Generator().manual_seed(0)) * 0.1
    x[:, :, 2:5, 3:6] += torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.5]).view(6, 1, 1) * (-1 if turned else 1)
    for name, method in METHODS.items():
        if name != "fem":
            found = method(nn.Sequential(nn.Identity()), x, None, "0")[0, 0]
            assert found[2:5, 3:6].min() > 3 * found[6:].abs().max()


def test_behind_a_relu_eigen_cam_is_not_negative():
    """The first singular vector of a matrix without negative entries has none either: Perron and Frobenius."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    found = saliency.eigen_cam(model, torch.randn(4, 3, 9, 9), None, "1")
    assert found.min() >= -1e-6 * found.max()


@pytest.mark.parametrize("shape", [(3, 40), (3, 9, 8), (3, 4, 5, 6)], ids=["signal", "image", "volume"])
@pytest.mark.parametrize("channels", [4, 200])
@pytest.mark.parametrize("name", ["eigen_cam", "eigen_grad_cam", "kpca_cam", "fem"])
def test_one_two_and_three_dimensions_in_a_batch_and_alone(name, channels, shape):
    """More positions than channels, and fewer: the smaller matrix is decomposed."""
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(shape) - 1]
    model = nn.Sequential(conv(3, channels, 1), nn.Tanh(), nn.Flatten(), nn.LazyLinear(5)).double()
    input = torch.randn(3, *shape).double()
    model(input)
    method = saliency.METHODS[name].function
    together = method(model, input, [0, 1, 2], "1")
    assert together.shape == (3, 1, *shape[1:])
    for n in range(3):
        torch.testing.assert_close(method(model, input[n : n + 1], [n], "1"), together[n : n + 1], rtol=1e-7, atol=1e-9)
    # The positions along one axis give the same values in the same order.
    flat = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, channels, 1), *model[1:]).double()
    flat[1].load_state_dict(
        {key: value.view(*value.shape[:2], *[1] * (value.ndim > 1)) for key, value in model[0].state_dict().items()}
    )
    along = method(flat, input, [0, 1, 2], "2", layout="channels_first")
    torch.testing.assert_close(along.flatten(), together.flatten(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_no_square_is_lost_or_overflows(scale):
    x = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Identity())
    expected = saliency.eigen_cam(model, x, None, "0")
    torch.testing.assert_close(saliency.eigen_cam(model, x * scale, None, "0") / scale, expected)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *(("kpca_cam", {"kernel": value}) for value in ("gauss", None, 3)),
        *(("kpca_cam", {"gamma": value}) for value in (0, -1.0, "1", math.nan)),
        *(("fem", {"k": value}) for value in (None, "2", math.inf, True)),
    ],
)
def test_options_that_make_no_sense(case, method, options):
    (argument,) = options
    with pytest.raises(ValueError, match=rf"^{argument}=.*expected .*\.$"):
        METHODS[method](case[0], case[1], None, "layer", **options)
