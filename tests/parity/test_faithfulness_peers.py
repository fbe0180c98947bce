"""Faithfulness beside pytorch-grad-cam, torch-cam, Quantus and SciPy; where a peer is wrong, a test says so."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from saliency.evaluation.metrics.faithfulness import (
    average_drop,
    curve_area,
    deletion,
    increase_in_confidence,
    insertion,
    road,
)
from saliency.evaluation.metrics.imputation import linear_imputation
from saliency.evaluation.metrics.perturbed import make_baseline
from saliency.evaluation.metrics.sensitivity import sensitivity_n
from tests.parity.networks import network

# The peers call NumPy as its older versions were called.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TARGET = [4, 1, 3]
SIDE = 60  # a multiple of 5: then the peers' quantiles remove the number of pixels that is asked for


@pytest.fixture
def cases():
    """Images and maps in [0, 1], without equal values but 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(3, 3, SIDE, SIDE, generator=generator)
    saliency = torch.rand(3, 1, 5, 5, generator=generator)
    saliency = nn.functional.interpolate(saliency, (SIDE, SIDE), mode="bilinear")
    saliency = saliency + 0.01 * torch.rand(saliency.shape, generator=generator)
    lowest, highest = saliency.amin((2, 3), keepdim=True), saliency.amax((2, 3), keepdim=True)
    return input, (saliency - lowest) / (highest - lowest)


def without_most_salient(saliency, percentage):
    count = round(saliency[0].numel() * percentage / 100)
    order = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
    return (
        torch.zeros(saliency.flatten(1).shape, dtype=torch.bool).scatter_(1, order[:, :count], True).view_as(saliency)
    )


def gradcam(name):
    pytest.importorskip("pytorch_grad_cam")
    module = pytest.importorskip(f"pytorch_grad_cam.metrics.{name}")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    return module, [targets.ClassifierOutputSoftmaxTarget(target) for target in TARGET]


@pytest.mark.parametrize("percentage", [10, 50, 90])
def test_imputation_of_pytorch_grad_cam(cases, percentage):
    peer, _ = gradcam("road")
    input, saliency = cases
    removed = without_most_salient(saliency, percentage)
    ours = linear_imputation(input, removed)
    for n in range(3):
        theirs = peer.NoisyLinearImputer(noise=0)(input[n], (~removed[n, 0]).float())
        assert (ours[n] - theirs).abs().max() < 2e-5


@pytest.mark.parametrize(("side", "share"), [(128, 0.9), (224, 0.9), (224, 0.98)])
def test_imputation_of_large_holes(side, share):
    peer, _ = gradcam("road")
    sparse = pytest.importorskip("scipy.sparse")
    solver = pytest.importorskip("scipy.sparse.linalg")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, side, side, generator=generator)
    coarse = torch.rand(1, 1, 7, 7, generator=generator)
    removed = without_most_salient(nn.functional.interpolate(coarse, (side, side), mode="bilinear"), 100 * share)
    kept = (~removed[0, 0]).numpy().astype(float)
    matrix, right = peer.NoisyLinearImputer.setup_sparse_system(kept, image[0].double().numpy(), peer.neighbors_weights)
    theirs = torch.from_numpy(solver.spsolve(sparse.csc_matrix(matrix), right)).T
    ours = linear_imputation(image, removed)[0, :, removed[0, 0]].double()
    assert (ours - theirs).abs().max() < 5e-5


def test_road_of_pytorch_grad_cam(cases):
    peer, targets = gradcam("road")
    input, saliency = cases
    # Its percentile is the share that is kept; ROADCombined has noise of torch's global generator, left out here.
    imputer = peer.NoisyLinearImputer(noise=0)
    most, least = (
        [
            peer.PerturbationConfidenceMetric(first(percentile, imputer))(
                input, saliency[:, 0].numpy(), targets, network("resnet18"), return_diff=False
            )
            for percentile in (20, 40, 60, 80)
        ]
        for first in (peer.RemoveMostRelevantFirst, peer.RemoveLeastRelevantFirst)
    )
    theirs = (np.mean(least, 0) - np.mean(most, 0)) / 2
    ours = road(network("resnet18"), input, torch.tensor(TARGET), saliency, noise=0)
    assert np.abs(theirs).max() > 1e-3
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-5)


def test_pytorch_grad_cam_removes_all_equal_pixels_of_a_map(cases):
    """60 % of the map are 0, as after the ReLU of a CAM: asked for 20 % of the least salient, it removes the 60 %."""
    peer, _ = gradcam("road")
    input, saliency = cases
    saliency = (saliency - saliency[0].quantile(0.6)).relu()[0, 0]
    removal = peer.RemoveLeastRelevantFirst(80, lambda image, kept: kept)
    assert (removal(input[0], saliency) == 0).float().mean() == pytest.approx(0.6, abs=1e-3)


def test_drop_and_increase_of_pytorch_grad_cam(cases):
    """Its drop is that of the probability itself, not its share of the probability before."""
    peer, targets = gradcam("cam_mult_image")
    input, saliency = cases
    arguments = (input, saliency[:, 0].numpy(), targets, network("resnet18"))
    before = network("resnet18")(input).softmax(1)[range(3), TARGET].detach()
    drop = average_drop(network("resnet18"), input, TARGET, saliency)
    assert (drop > 0.01).tolist() == [True, True, False]
    assert (drop * before).tolist() == pytest.approx(peer.DropInConfidence()(*arguments).tolist(), abs=1e-6)
    increase = increase_in_confidence(network("resnet18"), input, TARGET, saliency)
    assert increase.tolist() == peer.IncreaseInConfidence()(*arguments).tolist()


class Extractor:
    """What torch-cam's measures ask of an extractor, with maps that are given."""

    def __init__(self, model, saliency):
        self.model, self.saliency = model, saliency

    def __call__(self, class_idx, scores):
        return [self.saliency[:, 0]]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return contextlib.nullcontext()


def test_drop_and_increase_of_torchcam(cases):
    peer = pytest.importorskip("torchcam.metrics")
    input, saliency = cases
    model = network("resnet18")
    metric = peer.ClassificationMetric(Extractor(model, saliency), lambda output: output.softmax(1))
    metric.update(input, TARGET)
    theirs = metric.summary()
    assert average_drop(model, input, TARGET, saliency).mean().item() == pytest.approx(theirs["avg_drop"], abs=1e-5)
    increase = increase_in_confidence(model, input, TARGET, saliency).float().mean().item()
    assert increase == pytest.approx(theirs["conf_increase"])


def test_torchcam_halves_the_drop_of_a_small_probability():
    """It divides by p + 1e-7: where the target has 1e-7 and the map shows nothing of it, the drop is 1 and not 0.5."""
    peer = pytest.importorskip("torchcam.metrics")
    input, saliency = torch.full((1, 1, 1, 2), 1e-7), torch.tensor([[[[1.0, 0.0]]]])
    metric = peer.ClassificationMetric(Extractor(nn.Flatten(), saliency))
    metric.update(input, [1])
    assert metric.summary()["avg_drop"] == pytest.approx(0.5)
    assert average_drop(nn.Flatten(), input, 1, saliency, lambda output: output).item() == 1


def test_curves_of_torchcam(cases):
    peer = pytest.importorskip("torchcam.metrics")
    input, saliency = cases
    model = network("resnet18")
    hidden = make_baseline(input, "blur")
    metric = peer.DeletionInsertionMetric(
        Extractor(model, saliency), lambda output: output.softmax(1), steps=20, baseline=hidden
    )
    metric.update(input, TARGET)
    theirs = metric.summary()
    inserted = curve_area(insertion(model, input, TARGET, saliency, 20))
    deleted = curve_area(deletion(model, input, TARGET, saliency, 20, hidden))
    assert inserted.mean().item() == pytest.approx(theirs["insertion_auc"], abs=1e-5)
    assert deleted.mean().item() == pytest.approx(theirs["deletion_auc"], abs=1e-5)


def test_blur_of_rise():
    """Its baseline of insertion: an impulse under SciPy's Gaussian, reflected at the window, as the kernel."""
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(ndimage.gaussian_filter(impulse, 5)).expand(3, 1, 11, 11)
    input = torch.randn(1, 3, 224, 230, generator=torch.Generator().manual_seed(0)).double()
    theirs = nn.functional.conv2d(input, kernel, padding=5, groups=3)
    assert torch.allclose(make_baseline(input, "blur"), theirs, atol=1e-12)


@pytest.fixture
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("quantus")


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5)).eval()


def small_cases():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, 1, 10, 10, generator=generator), torch.rand(4, 1, 10, 10, generator=generator)


def test_pixel_flipping_of_quantus(quantus):
    """Our deletion curve of images of one channel, without its first point."""
    input, saliency = small_cases()
    model, target = small_network(), torch.tensor([0, 1, 2, 3])
    metric = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=0.0, normalise=False, disable_warnings=True, return_aggregate=False
    )
    theirs = metric(model, input.numpy(), target.numpy(), saliency.numpy(), softmax=True, device="cpu")
    ours = deletion(model, input, target, saliency, 25)
    assert ours[:, 1:].numpy() == pytest.approx(np.array(theirs), abs=1e-5)


def test_imputation_of_quantus(quantus, cases):
    function = pytest.importorskip("quantus.functions.perturb_func").noisy_linear_imputation
    input, saliency = cases
    removed = without_most_salient(saliency, 40)
    ours = linear_imputation(input, removed)
    indices = removed[0].flatten().nonzero().flatten().numpy()
    theirs = function(arr=input[0].numpy(), indices=indices, noise=0)
    assert ours[0].numpy() == pytest.approx(theirs, abs=2e-5)


def test_sensitivity_n_of_quantus_correlates_over_the_images(quantus):
    """On a linear model a gradient times its input has correlation 1 for every image; its figure is another one.

    It correlates, for a step, over the images of the batch, what one more step of the most salient pixels sums up to
    with the loss of all steps so far.
    """
    input, _ = small_cases()
    torch.manual_seed(0)
    model, target = nn.Sequential(nn.Flatten(), nn.Linear(100, 5)).eval(), torch.tensor([0, 1, 2, 3])
    attribution = input * model[1].weight[target].detach().view_as(input)
    assert sensitivity_n(model, input, target, attribution, 10).tolist() == pytest.approx([1] * 4, abs=1e-5)
    metric = quantus.SensitivityN(
        features_in_step=10, perturb_baseline=0.0, normalise=False, disable_warnings=True, return_aggregate=False
    )
    arguments = (model, input.numpy(), target.numpy(), attribution.numpy())
    theirs = metric(*arguments, softmax=False, device="cpu")
    assert len(theirs) == 8  # steps up to 80 % of the pixels, not images
    assert min(theirs) < 0.9
