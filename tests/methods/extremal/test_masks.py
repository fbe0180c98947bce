"""Extremal perturbations: the rewards, the rows of a batch, layers, and what a call refuses."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saliency import Probe
from saliency.engine.maps import imsmooth, resize_saliency
from saliency.methods.extremal import (
    contrastive_reward,
    extremal_perturbation,
    extremal_perturbation_map,
    simple_reward,
)
from tests import cases
from tests.cases import MODEL_CASES, NOTICES, shown

FAST = {"max_iter": 4, "step": 3, "sigma": 4}
VARIANTS = ["preserve", "delete", "dual"]


def explain(case, target=None, model=None, input=None, **options):
    """On a model of the table; what is not said is the case's own."""
    dtype = options.pop("dtype", torch.float64)
    model = case.model(dtype) if model is None else model
    input = case.input(dtype) if input is None else input
    target = case.target if target is None else target
    return extremal_perturbation(model, input, target, **{**FAST, **case.options(dtype), **options})


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


class TestRewards:
    SCORES = torch.tensor([[1.0, 4.0, 2.0], [7.0, 3.0, 5.0], [0.0, -1.0, -2.0], [6.0, 8.0, 6.5]])
    SIMPLE = ([4, 3, -1, 8], [1, 5, -2, 6])  # of channel 1; of channels 0, 2, 2, 0
    CONTRASTIVE = ([2, -4, -1, 1.5], [-3, -2, -2, -2])

    @pytest.mark.parametrize("grid", [(), (2, 3)])
    @pytest.mark.parametrize(("reward", "by_hand"), [(simple_reward, SIMPLE), (contrastive_reward, CONTRASTIVE)])
    def test_within_each_mask(self, reward, by_hand, grid):
        scores = self.SCORES.view(4, 3, *[1] * len(grid)).expand(4, 3, *grid)
        for target, expected in zip((1, torch.tensor([0, 2, 2, 0])), by_hand, strict=True):
            value = torch.tensor(expected, dtype=torch.float32)
            expected = value.view(4, *[1] * len(grid)).expand(4, *grid)
            assert torch.equal(reward(scores, target, "preserve"), expected)
            assert torch.equal(reward(scores, target, variant="delete"), -expected)
            assert torch.equal(reward(scores, target, variant="dual"), expected[:2] - expected[2:])

    def test_very_small_scores(self):
        """No score is below what the channel itself is replaced by."""
        assert contrastive_reward(torch.tensor([[-500.0, -800.0]]), 0, "preserve").tolist() == [300]
        assert contrastive_reward(torch.tensor([[-500.0, -800.0]]).half(), 1, "preserve").tolist() == [-300]

    @pytest.mark.parametrize("reward", [simple_reward, contrastive_reward])
    @pytest.mark.parametrize(
        ("target", "variant", "rows", "message"),
        [
            (3, "preserve", 4, r"target=3 is out of range: the output has classes 0 to 2; expected .*\."),
            (torch.tensor([1, 2]), "preserve", 4, r"target=a tensor of shape \(2,\) has shape \(2,\)"),
            (1, "keep", 4, r"variant='keep' is not a variant; expected one of preserve, delete, dual\."),
            (1, "dual", 3, r"activation=3 rows cannot be halved; expected an even number of rows\."),
        ],
    )
    def test_errors(self, reward, target, variant, rows, message):
        with pytest.raises(ValueError, match=message):
            reward(self.SCORES[:rows], target, variant)

    def test_nothing_to_compare_with(self):
        with pytest.raises(ValueError, match=r"activation=\(2, 1\) has no other channel .*; expected two or more\."):
            contrastive_reward(torch.ones(2, 1), 0, "preserve")


class TestRows:
    @pytest.mark.parametrize("reward", [simple_reward, contrastive_reward])
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("layer", ["", "features.0"])
    def test_a_batch_is_its_rows_one_by_one(self, layer, variant, reward):
        case, targets, areas = cases.IN_PLACE, torch.tensor([[1, 3], [0, 2]]), (0.1, 0.4)
        options = {"variant": variant, "reward_func": reward, "saliency_layer": layer}
        masks, energies = explain(case, targets, areas=areas, **options)
        assert masks.shape == (8, 1, 11, 14)
        assert energies.shape == (8, 2, 4)
        singles = [
            explain(case, int(targets[n, k]), input=case.input()[n : n + 1], areas=area, **options)
            for n in range(2)
            for k in range(2)
            for area in areas
        ]
        close(masks, torch.cat([mask for mask, _ in singles]))
        close(energies, torch.cat([energy for _, energy in singles]))

    @pytest.mark.parametrize("case", MODEL_CASES, ids=lambda case: case.name)
    @pytest.mark.parametrize("at", ["input", "inside", "default"])
    def test_every_model(self, case, at):
        layer = {"input": "", "inside": case.layers[0], "default": None}[at]
        masks, energies = explain(case, saliency_layer=layer, areas=(0.2, 0.5), step=2, sigma=2)
        grid = {"input": case.shapes[0][2:], "default": case.grid}.get(at, masks.shape[2:])
        assert masks.shape == (4, 1, *grid)
        assert masks.dtype == torch.float64
        assert not masks.requires_grad
        assert not energies.requires_grad
        assert 0 <= masks.min() < masks.max() <= 1
        assert energies.isfinite().all()
        if case.batched:
            for n in range(2):
                input = case.input()
                one = tuple(x[n : n + 1] for x in input) if isinstance(input, tuple) else input[n : n + 1]
                mask, energy = explain(case, input=one, saliency_layer=layer, areas=(0.2, 0.5), step=2, sigma=2)
                close(masks[2 * n : 2 * n + 2], mask)
                close(energies[2 * n : 2 * n + 2], energy)

    @NOTICES
    def test_converged_rows_leave_a_batch_as_they_leave_a_single_run(self):
        case, areas = cases.IN_PLACE, (0.05, 0.5, 1.0)
        options = {"tolerance": 3e-3, "max_iter": 60, "jitter": False}
        masks, energies = explain(case, areas=areas, **options)
        ends = [int((energies[row, 1].diff() != 0).sum()) for row in range(6)]
        assert len(set(ends)) > 1
        assert min(ends) < 50
        for n in range(2):
            for a, area in enumerate(areas):
                mask, energy = explain(case, input=case.input()[n : n + 1], areas=area, **options)
                close(masks[3 * n + a : 3 * n + a + 1], mask)
                close(energies[3 * n + a : 3 * n + a + 1], energy)


class TestTargets:
    @pytest.mark.parametrize(
        "target",
        [
            1,
            [1, 1],
            torch.tensor([1, 1]),
            torch.tensor([[1], [1]]),
            (1,),
            [(1,), (1,)],
            torch.tensor([[0.0, 1, 0, 0]] * 2),
            lambda output: output[:, 1],
        ],
        ids=shown,
    )
    @pytest.mark.parametrize("layer", ["", "features.0"])
    def test_however_it_is_said(self, target, layer):
        expected = explain(cases.IN_PLACE, 1, saliency_layer=layer)
        for ours, other in zip(explain(cases.IN_PLACE, target, saliency_layer=layer), expected, strict=True):
            close(ours, other)

    def test_of_every_image_its_own(self):
        for form in ([1, 3], torch.tensor([1, 3]), [(1,), (3,)], torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1]])):
            masks = explain(cases.IN_PLACE, form)[0]
            for n, target in enumerate((1, 3)):
                close(masks[n : n + 1], explain(cases.IN_PLACE, target, input=cases.IN_PLACE.input()[n : n + 1])[0])

    def test_a_dense_output_is_averaged(self):
        def mean(output):
            return output[:, 2].mean((1, 2))

        close(explain(cases.DENSE, 2)[0], explain(cases.DENSE, mean)[0])

    def test_what_the_reward_function_is_given(self):
        seen = []

        def reward_func(activation, target, variant):
            seen.append((activation.shape, target, variant))
            return simple_reward(activation, target, variant)

        for target in (2, [2, 2], [2, 3], None):
            case = cases.ONE_SCORE if target is None else cases.IN_PLACE
            explain(case, target, areas=(0.1, 0.2), variant="dual", reward_func=reward_func, max_iter=1)
        (one, same, each, score) = seen
        assert one == same == ((8, 4), 2, "dual")
        assert each[1].tolist() == [2, 2, 3, 3] * 2
        assert score == ((8, 1), 0, "dual")

    @pytest.mark.parametrize("target", [9, [0, 9], torch.tensor([0, 1, 2]), "cat", None, lambda output: output[None]])
    def test_errors(self, target):
        model = cases.IN_PLACE.model()
        with pytest.raises(ValueError, match=r"target=.*expected"):
            extremal_perturbation(model, cases.IN_PLACE.input(), target, **FAST)


class TestLayers:
    def test_a_mask_wider_than_the_layer_is_refused(self):
        """Where the default step and sigma of an image would leave a single parameter."""
        with pytest.raises(ValueError, match=r"sigma=21 is wider than the layer's grid \(6, 7\); .*expected"):
            extremal_perturbation(cases.IN_PLACE.model(), cases.IN_PLACE.input(), 1, saliency_layer="features")

    def test_a_layer_that_is_the_identity_is_the_input(self):
        case = cases.FUNCTIONAL
        model = nn.Sequential(nn.Identity(), case.model())
        for ours, other in zip(explain(case, model=model, saliency_layer="0"), explain(case), strict=True):
            close(ours, other)

    def test_a_module_is_its_name(self):
        model = cases.FUNCTIONAL.model()
        assert torch.equal(
            explain(cases.FUNCTIONAL, model=model, saliency_layer=model.conv1)[0],
            explain(cases.FUNCTIONAL, model=model, saliency_layer="conv1")[0],
        )

    @pytest.mark.parametrize("case", [cases.TRANSFORMER, cases.CHANNELS_LAST], ids=lambda case: case.name)
    def test_a_mask_of_tokens_is_that_of_their_grid(self, case):
        """As if the layer made (N, C, h, w), and the rest of the network started with a permutation."""

        class Front(nn.Module):
            def forward(self, x):
                tokens = body(x)
                rest = tokens[:, 1:] if tokens.ndim == 3 else tokens.flatten(1, 2)
                return rest.mT.unflatten(2, case.grid)

        class Back(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                tokens = x.flatten(2).mT
                if case is cases.TRANSFORMER:
                    tokens = torch.cat([first.expand(len(x), -1, -1), tokens], 1)
                    return model.head(model.norm(model.blocks[1](tokens))[:, 0])
                return model.head(tokens.unflatten(1, case.grid).mean((1, 2)))

        model = case.model()
        layer, grid_first = (
            ("blocks.0", nn.Sequential(Front(), Back())) if case is cases.TRANSFORMER else ("norm", None)
        )
        grid_first = grid_first or nn.Sequential(Front(), Back())
        x = case.input()[:1]

        def body(x):
            with Probe(model.get_submodule(layer), "output") as probe:
                model(x)
            return probe.data[0].detach()

        first = body(x)[:, :1]
        options = {"input": x, "step": 1, "sigma": 2, "areas": (0.2, 0.5)}
        ours = explain(case, model=model, saliency_layer=layer, **options)
        for mask, other in zip(ours, explain(case, model=grid_first, saliency_layer="0", **options), strict=True):
            close(mask, other)

    @NOTICES
    def test_layout(self):
        case = cases.CHANNELS_LAST
        expected = explain(case, saliency_layer="norm")[0]
        for layout in ("channels_last", lambda x: x.movedim(-1, 1)):
            assert torch.equal(explain(case, saliency_layer="norm", layout=layout)[0], expected)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (["features", ""], r"saliency_layer=\['features', ''\] is not one layer; expected a name, .*\."),
            (
                "feature",
                r"saliency_layer='feature' is not a layer of the model .*did you mean 'features'.*expected a name .*\.",
            ),
            (nn.ReLU(), "saliency_layer=ReLU is not part of the model"),
        ],
    )
    def test_errors(self, layer, message):
        with pytest.raises(ValueError, match=message):
            explain(cases.IN_PLACE, saliency_layer=layer)

    def test_a_layer_without_gradient(self):
        class Side(cases.Functional):
            def forward(self, x):
                result = super().forward(x)
                if self.detached:
                    return result.detach()
                self.side(x)
                return result

        model = Side().eval()
        model.side, model.detached = nn.Conv2d(3, 2, 1), False
        x = torch.randn(1, 3, 11, 14)
        with pytest.raises(ValueError, match=r"saliency_layer='side' is reached by no gradient.*expected .*\."):
            extremal_perturbation(model, x, 1, saliency_layer="side", **FAST)
        model.detached = True
        with pytest.raises(ValueError, match="saliency_layer='' is reached by no gradient"):
            extremal_perturbation(model, x, 1, **FAST)

    def test_a_layer_inside_no_grad(self):
        class Frozen(cases.InPlace):
            def forward(self, x):
                with torch.no_grad():
                    x = self.features[0](x)
                return self.classifier(self.features[1:](x).mean((2, 3)))

        frozen = Frozen().double().eval()
        frozen.load_state_dict(cases.IN_PLACE.model().state_dict())
        close(
            explain(cases.IN_PLACE, model=frozen, saliency_layer="features.0")[0],
            explain(cases.IN_PLACE, saliency_layer="features.0")[0],
        )


class TestOptions:
    def test_areas(self):
        one = explain(cases.IN_PLACE, areas=0.1)
        for areas in (0.1, [0.1], torch.tensor([0.1]).double(), torch.tensor(0.1).double(), np.array([0.1])):
            assert torch.equal(explain(cases.IN_PLACE, areas=areas)[0], one[0])
        assert explain(cases.IN_PLACE)[0].equal(one[0])  # the default

    def test_a_mask_comes_to_have_its_area(self):
        """Also where the score does not matter: the area term alone shapes the mask."""
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        nn.init.constant_(model[0].weight, 1e-6)
        options = {"areas": (0.1, 0.3, 0.6), "max_iter": 150, "step": 4, "sigma": 6, "jitter": False}
        masks = extremal_perturbation(model.double(), torch.ones(1, 1, 32, 32).double(), 0, **options)[0]
        # The area is that of the mask with its margin of sigma on every side; the margin may hold all or none of it.
        for share, area in zip(masks.flatten(1).mean(1).tolist(), options["areas"], strict=True):
            assert area * 0.8 < share < min(1, area * (44 / 32) ** 2 * 1.1)

    def test_it_finds_what_the_score_depends_on(self):
        """A network that adds up one corner of the image, and a mask of the corner's size."""

        class Corner(nn.Module):
            def forward(self, x):
                return x[:, :, :10, :10].sum((1, 2, 3))[:, None]

        options = {"areas": (0.15,), "max_iter": 200, "step": 3, "sigma": 4, "jitter": False, "perturbation": "fade"}
        mask = extremal_perturbation(Corner(), torch.ones(1, 1, 24, 24), 0, **options)[0][0, 0]
        assert mask[:8, :8].mean() > 0.8
        assert mask[14:, 14:].mean() < 0.2

    @NOTICES
    def test_resize_and_smooth(self):
        case = cases.IN_PLACE
        raw = explain(case, saliency_layer="features")[0]
        resized = explain(case, saliency_layer="features", resize=(9, 4), smooth=0.2)[0]
        expected = resize_saliency(case.input(), raw, (9, 4), "bilinear")
        assert torch.equal(resized, imsmooth(expected, 0.2 * 4))
        assert explain(case, saliency_layer="features", resize=True, resize_mode="nearest")[0].shape == (2, 1, 11, 14)

    def test_seed(self):
        results = [explain(cases.IN_PLACE, seed=seed, max_iter=10)[0] for seed in (None, 1, 1, 2)]
        assert torch.equal(results[1], results[2])
        assert not torch.equal(results[1], results[3])
        assert not torch.equal(results[0], results[1])
        assert torch.equal(
            explain(cases.IN_PLACE, seed=1, jitter=False)[0], explain(cases.IN_PLACE, seed=2, jitter=False)[0]
        )

    def test_print_iter(self):
        seen = []
        energies = explain(cases.IN_PLACE, print_iter=lambda i, values: seen.append((i, values)))[1]
        assert [i for i, _ in seen] == [0, 1, 2, 3]
        assert torch.equal(torch.stack([values for _, values in seen], 2), energies)

    def test_nothing_is_printed(self, capsys):
        explain(cases.IN_PLACE, debug=True, max_iter=1)
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("layer", ["", "features.0"])
    def test_debug(self, layer):
        case = cases.IN_PLACE
        masks, energies, probes = explain(case, debug=True, saliency_layer=layer, areas=(0.1, 0.2))
        expected = explain(case, saliency_layer=layer, areas=(0.1, 0.2))
        close(masks, expected[0])
        close(energies, expected[1])
        assert list(probes) == [name for name, _ in case.model().named_modules()]
        for name in ("features.2", "classifier"):
            assert len(probes[name].data[0]) == (2 if layer else 4)
            assert probes[name].data[0].grad.abs().max() > 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"areas": ()}, r"areas=\(\) are not fractions of the mask; expected one or more numbers in \(0, 1\]\."),
            ({"areas": (0.1, 0)}, "areas="),
            ({"areas": 1.5}, r"areas=1\.5 are not fractions"),
            ({"areas": "0.1"}, "areas='0.1' are not fractions"),
            ({"areas": (float("nan"),)}, "areas="),
            ({"perturbation": "noise"}, "perturbation='noise' is not a perturbation"),
            ({"max_iter": 0}, "max_iter=0 is not a positive number"),
            ({"num_levels": 1}, "num_levels=1 is not a number of levels"),
            ({"step": 0}, "step=0 is not a number of positions"),
            ({"sigma": 0}, "sigma=0 is not a number of positions"),
            ({"variant": "keep"}, "variant='keep' is not a variant"),
            ({"print_iter": 10}, r"print_iter=10 is not callable; expected a callback print_iter"),
            ({"reward_func": "simple"}, "reward_func='simple' is not callable; expected a function .*"),
            (
                {"reward_func": lambda y, target, variant: y[:1, 0]},
                r"reward_func=.* returned .* \(1,\); expected 2 rows",
            ),
            ({"reward_func": lambda y, target, variant: 1.0}, "reward_func=.* returned a float; expected 2 rows"),
            ({"resize": "big"}, "resize='big' is not a size"),
            ({"smooth": -1}, "smooth=-1 is not a fraction"),
            ({"seed": "a"}, "seed='a' is not a seed"),
            ({"tolerance": None}, "tolerance=None is not a valid tolerance"),
            ({"layout": "rows"}, "layout='rows' is not a layout"),
        ],
    )
    def test_errors(self, options, message):
        with pytest.raises(ValueError, match=message):
            explain(cases.IN_PLACE, **options)

    @pytest.mark.parametrize("input", [torch.randn(2, 3), torch.randn(2, 3, 1, 2, 2, 2)])
    def test_an_input_without_grid(self, input):
        model = nn.Sequential(nn.Flatten(), nn.Linear(input[0].numel(), 2))
        with pytest.raises(ValueError, match=r"input=\(2, 3.*\) has no grid; expected .*\."):
            extremal_perturbation(model, input, 0, **FAST)


class TestTheCallLeavesNoTrace:
    @pytest.mark.parametrize("layer", ["", "features.0"])
    def test_model_input_and_random_state(self, layer):
        case = cases.TRAIN_MODE
        model, input = case.model(), case.input().requires_grad_()
        next(model.parameters()).requires_grad_(False)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        flags = [parameter.requires_grad for parameter in model.parameters()]
        modes = [module.training for module in model.modules()]
        states = torch.get_rng_state(), random.getstate()
        kept = input.detach().clone()
        explain(case, model=model, input=input, saliency_layer=layer, seed=3)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [module.training for module in model.modules()] == modes
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert torch.equal(input, kept)
        assert input.grad is None

    def test_after_an_error_in_the_callback(self):
        model = cases.TRAIN_MODE.model()

        def stop(iteration, energies):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            explain(cases.TRAIN_MODE, model=model, print_iter=stop, debug=True, saliency_layer="features.0")
        assert model.training
        assert torch.is_grad_enabled()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    @pytest.mark.parametrize("layer", ["", "features.0"])
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradients_outside(self, mode, layer):
        expected = explain(cases.IN_PLACE, saliency_layer=layer)
        model = cases.IN_PLACE.model()
        with mode():
            input = cases.IN_PLACE.input()
            ours = explain(cases.IN_PLACE, model=model, input=input, saliency_layer=layer)
        assert all(map(torch.equal, ours, expected))

    def test_no_gradient_of_a_parameter_is_computed(self):
        model = cases.IN_PLACE.model()
        seen = []
        for parameter in model.parameters():
            parameter.register_hook(seen.append)
        explain(cases.IN_PLACE, model=model)
        assert not seen


@pytest.mark.parametrize("layer", ["", "features.0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, layer):
    masks, energies = explain(cases.IN_PLACE, dtype=dtype, saliency_layer=layer)
    exact = explain(cases.IN_PLACE, saliency_layer=layer)
    assert masks.dtype == dtype
    assert energies.dtype == torch.float32
    assert (masks - exact[0]).abs().max() < 0.05
    assert ((energies - exact[1]).abs() / exact[1].abs().amax((1, 2), keepdim=True)).max() < 0.02


def test_autocast_keeps_the_masks_in_full_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masks, energies = explain(cases.IN_PLACE, dtype=torch.float32)
    assert masks.dtype == energies.dtype == torch.float32
    exact = explain(cases.IN_PLACE, dtype=torch.float32)
    torch.testing.assert_close(energies[:, 1], exact[1][:, 1], rtol=0.02, atol=0.02)


THREE_AREAS = {**FAST, "areas": (0.1, 0.2, 0.4)}


class TestMap:
    @pytest.mark.parametrize("layer", ["", "features"])
    def test_it_is_the_sum_over_the_areas(self, layer):
        case, target = cases.IN_PLACE, torch.tensor([[1, 3], [0, 2]])
        ours = extremal_perturbation_map(case.model(), case.input(), target, layer, **THREE_AREAS)
        masks = explain(case, target, saliency_layer=layer, areas=(0.1, 0.2, 0.4))[0]
        assert ours.shape == (2, 2, *masks.shape[2:])
        for n in range(2):
            for k in range(2):
                close(ours[n, k], sum(masks[(2 * n + k) * 3 + a, 0] for a in range(3)))

    def test_the_default_areas_and_one_area(self):
        case = cases.IN_PLACE
        ours = extremal_perturbation_map(case.model(), case.input(), 1, **FAST)
        masks = explain(case, 1, areas=(0.025, 0.05, 0.1, 0.2))[0]
        close(ours, masks.view(2, 4, 11, 14).sum(1, keepdim=True))
        one = extremal_perturbation_map(case.model(), case.input(), 1, areas=0.1, **FAST)
        close(one, explain(case, 1)[0])

    def test_resize_and_smooth_as_for_every_map(self):
        case = cases.IN_PLACE
        raw = extremal_perturbation_map(case.model(), case.input(), 1, "features", **THREE_AREAS)
        options = {**THREE_AREAS, "resize": (9, 4), "resize_mode": "nearest", "smooth": 0.1}
        ours = extremal_perturbation_map(case.model(), case.input(), 1, "features", **options)
        resized = resize_saliency(case.input(), raw, (9, 4), "nearest")
        assert torch.equal(ours, imsmooth(resized, 0.9, padding_mode="replicate"))

    def test_debug(self):
        case = cases.IN_PLACE
        result, probes = extremal_perturbation_map(case.model(), case.input(), 1, debug=True, **THREE_AREAS)
        close(result, extremal_perturbation_map(case.model(), case.input(), 1, **THREE_AREAS))
        assert list(probes) == [name for name, _ in case.model().named_modules()]

    def test_errors(self):
        with pytest.raises(ValueError, match="smooth=-1 is not a fraction"):
            extremal_perturbation_map(cases.IN_PLACE.model(), cases.IN_PLACE.input(), 1, smooth=-1)
        with pytest.raises(ValueError, match="areas=None are not fractions"):
            extremal_perturbation_map(cases.IN_PLACE.model(), cases.IN_PLACE.input(), 1, areas=None)


@pytest.mark.parametrize("layer", ["", "features.0"])
@pytest.mark.parametrize("target", [1, torch.tensor([[0, 2], [1, 3]]), lambda output: output[:, :2]], ids=shown)
def test_nothing_waits_for_the_device(target, layer):
    case = cases.IN_PLACE
    model, input = case.model(torch.float32).to("meta"), case.input(torch.float32).to("meta")
    masks, energies = explain(case, target, model=model, input=input, saliency_layer=layer)
    assert masks.is_meta
    assert energies.is_meta


def test_a_function_of_several_scores():
    case = cases.IN_PLACE
    ours = explain(case, lambda output: output[:, [1, 3]], areas=(0.1, 0.4))
    for found, expected in zip(ours, explain(case, [[1, 3], [1, 3]], areas=(0.1, 0.4)), strict=True):
        close(found, expected)
