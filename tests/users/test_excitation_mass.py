"""What excitation backprop sends down: between nothing and all of a probability, or a word about it."""

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

import saliency
from saliency import ExcitationBackpropContext, contrastive_excitation_backprop, excitation_backprop, shared_forward
from tests.users.test_silent import Net, image

ACTIVE = {"sums": "active"}
UNBOUNDED = r"winning probability that arrives is not between 0 and 1.*sums='active'"
LOST = r"more than half of the winning probability did not arrive.*sums='active'"


def mass(saliency_map: Tensor) -> Tensor:
    return saliency_map.flatten(1).sum(1)


def ones(count: int = 2) -> Tensor:
    return torch.ones(count)


def pointwise(*weights: float) -> dict[str, nn.Module]:
    """Convolutions of one channel that only scale."""
    convs = {f"conv{i}": nn.Conv2d(1, 1, 1, bias=False) for i in range(len(weights))}
    for conv, weight in zip(convs.values(), weights, strict=True):
        nn.init.constant_(conv.weight, weight)
    return convs


def total(s: Net, x: Tensor) -> Tensor:
    terms = [part(x) for part in s.children()]
    return sum(terms[1:], terms[0]).relu().mean((2, 3))


def in_place(s: Net, x: Tensor) -> Tensor:
    first, *others = [part(x) for part in s.children()]
    for other in others:
        first += other
    return first.relu().mean((2, 3))


def scaled(s: Net, x: Tensor) -> Tensor:
    first, second = [part(x) for part in s.children()]
    return torch.add(first, second, alpha=2).relu().mean((2, 3))


# Weights of the terms, how they are added up, and the signed shares: each conv sends back w_i x / sum(w) x where its
# weight is positive, and nothing where it is not.
SUMS = {
    "two terms": (total, (2, -1.9), 2 / 0.1),
    "three terms": (total, (3, -2.5, -0.25), 12),
    "in place": (in_place, (1.5, -1), 3),
    "scaled": (scaled, (3, -1.25), 6),
}


class TestSums:
    @pytest.mark.parametrize("name", SUMS)
    def test_signed_shares_are_not_bounded_and_say_so(self, name):
        run, weights, expected = SUMS[name]
        model = Net(run, **pointwise(*weights))
        with pytest.warns(UserWarning, match=rf"^saliency_layer='': the {UNBOUNDED}") as told:
            found = excitation_backprop(model, image(channels=1), 0, "")
        assert (len(told), told[0].filename) == (1, __file__)
        torch.testing.assert_close(mass(found), expected * ones(), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("name", SUMS)
    def test_an_inactive_term_wins_nothing(self, name):
        run, weights, _ = SUMS[name]
        found = excitation_backprop(Net(run, **pointwise(*weights)), image(channels=1), 0, "", **ACTIVE)
        torch.testing.assert_close(mass(found), ones())

    def test_active_terms_by_hand(self):
        """Terms 3 and -1 of one unit, 1 and 2 of another: 3/3 of the first, 1/3 and 2/3 of the second."""
        a, b = torch.tensor([[3.0, 1.0]], requires_grad=True), torch.tensor([[-1.0, 2.0]], requires_grad=True)
        with ExcitationBackpropContext("active"):
            (a + b).backward(torch.tensor([[0.25, 0.75]]))
        torch.testing.assert_close(a.grad, torch.tensor([[0.25, 0.25]]))
        torch.testing.assert_close(b.grad, torch.tensor([[0.0, 0.5]]))

    def test_where_no_term_is_active_all_of_it_is_lost(self):
        a, b = (torch.full((1, 2), -1.0, requires_grad=True) for _ in range(2))
        with ExcitationBackpropContext("active"):
            (a + b).backward(torch.ones(1, 2))
        assert not a.grad.any()
        assert not b.grad.any()

    def test_active_terms_alone_share_as_signed_ones_do(self):
        model, found = Net(total, **pointwise(1, 2, 3)), []
        for sums in ("signed", "active"):
            with pytest.warns(UserWarning, match=LOST):  # 2/3 go to the other terms
                found.append(excitation_backprop(model, image(channels=1), 0, "conv1", sums=sums))
        torch.testing.assert_close(*found)

    def test_a_constant_is_a_bias(self):
        x = torch.tensor([[1.0, 2.0]], requires_grad=True)
        with ExcitationBackpropContext("active"):
            (x + torch.tensor([-3.0, 1.0])).backward(torch.tensor([[0.5, 0.5]]))
        assert x.grad.tolist() == [[0.5, 0.5]]

    @pytest.mark.parametrize("layer", ["", "layer1", "layer3", "layer4"])
    def test_residual_networks_stay_within_1_with_both(self, layer):
        torch.manual_seed(0)
        model, x = torchvision.models.resnet18(num_classes=4).eval(), image(64)
        nn.init.uniform_(model.fc.weight, -0.5, 1)
        torch.testing.assert_close(mass(excitation_backprop(model, x, 1, layer)), ones(), rtol=1e-3, atol=0)
        assert (mass(excitation_backprop(model, x, 1, layer, **ACTIVE)) <= 1.001).all()

    def test_several_branches_with_normalisations(self):
        """As in RepVGG: two convolutions and the input itself, each with its own batch norm."""

        def block(channels: int) -> nn.Module:
            parts = [nn.Conv2d(channels, channels, k, padding=k // 2, bias=False) for k in (3, 1)]
            norms = [nn.BatchNorm2d(channels) for _ in range(3)]
            for norm in norms:
                nn.init.normal_(norm.bias)
            branches = [nn.Sequential(conv, norm) for conv, norm in zip(parts, norms, strict=False)] + [norms[2]]
            return Net(
                lambda s, x: sum((b(x) for b in list(s.children())[1:]), s.b0(x)).relu(),
                **{f"b{i}": branch for i, branch in enumerate(branches)},
            )

        torch.manual_seed(4)
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        model = nn.Sequential(nn.Conv2d(3, 8, 3), *(block(8) for _ in range(6)), *head).eval()
        nn.init.uniform_(model[-1].weight)
        with pytest.warns(UserWarning, match=UNBOUNDED):
            signed = excitation_backprop(model, image(), 1, "0")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{LOST}")
            active = excitation_backprop(model, image(), 1, "0", **ACTIVE)
        assert not ((mass(signed) >= 0) & (mass(signed) <= 1.05)).all()
        assert ((mass(active) >= 0) & (mass(active) <= 1.001)).all()

    def test_cancelling_terms_give_no_nan(self):
        """Sums of terms that nearly cancel, one behind the other, as attention with a residual pooling makes them."""

        def cancel(s: Net, x: Tensor) -> Tensor:
            y = s.conv0(x)
            for _ in range(12):
                y = (y + s.conv1(y)) * 2**20
            return y.mean((2, 3))

        model = Net(cancel, **pointwise(1, 2**-20 - 1))
        for layer in ("", "conv0"):
            with pytest.warns(UserWarning, match=UNBOUNDED):
                assert excitation_backprop(model, image(channels=1), 0, layer).isfinite().all()
            active = excitation_backprop(model, image(channels=1), 0, layer, **ACTIVE)
            torch.testing.assert_close(mass(active), ones())

    def test_the_contrastive_method_takes_it_too(self):
        def run(s: Net, x: Tensor) -> Tensor:
            return s.fc((s.a(x) + s.b(x)).relu().mean((2, 3)))

        torch.manual_seed(0)
        model = Net(run, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 3))
        opposite = Net(run, a=model.a, b=model.b, fc=nn.Linear(4, 3))
        opposite.fc.weight.data = -model.fc.weight.data
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = contrastive_excitation_backprop(model, image(), 1, "", **ACTIVE)
            listed = contrastive_excitation_backprop(model, image(), 1, [""], **ACTIVE)
            p, against = (excitation_backprop(net, image(), 1, "", **ACTIVE) for net in (model, opposite))
        torch.testing.assert_close(found, (p - against).relu())
        assert torch.equal(listed[0], found)

    def test_on_a_kept_pass(self):
        model, x = Net(total, **pointwise(2, -1.9)), image(channels=1)
        shared = shared_forward(model, x)
        for _ in range(2):
            torch.testing.assert_close(mass(excitation_backprop(model, x, 0, "", shared=shared, **ACTIVE)), ones())
            with pytest.warns(UserWarning, match=UNBOUNDED):
                excitation_backprop(model, x, 0, "", shared=shared)

    @pytest.mark.parametrize("sums", ["positive", None, 2, []])
    def test_another_word(self, sums):
        for method in (excitation_backprop, contrastive_excitation_backprop):
            with pytest.raises(ValueError, match=r"^sums=.* is not a rule for sums; expected 'signed' or 'active'\.$"):
                method(Net(total, **pointwise(1, 1)), image(channels=1), 0, "", sums=sums)

    def test_with_a_context_of_ones_own(self):
        with pytest.raises(ValueError, match=r"^sums='active' is not possible with .*; expected .*\.$"):
            excitation_backprop(
                Net(total, **pointwise(1, 1)), image(channels=1), 0, "", saliency.GuidedBackpropContext, **ACTIVE
            )


class TestLost:
    def test_a_unit_that_its_bias_excites(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1, 1], [-1, 0]]))
            model[0].bias.copy_(torch.tensor([0, 4]))
            model[2].weight.fill_(1)
        with pytest.warns(UserWarning, match=rf"^saliency_layer='': {LOST}") as told:
            found = excitation_backprop(model, torch.ones(1, 2), 0, "")  # 3/5 are lost
        assert len(told) == 1
        assert found.sum().item() == pytest.approx(0.4)

    def test_past_the_layer(self):
        """The other branch has 9/10 of the sum."""
        with pytest.warns(UserWarning, match=rf"^saliency_layer='conv1': {LOST}"):
            found = excitation_backprop(Net(total, **pointwise(9, 1)), image(channels=1), 0, "conv1")
        torch.testing.assert_close(mass(found), 0.1 * ones())

    def test_inputs_below_0_are_not_active(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
        nn.init.ones_(model[1].weight)
        x = torch.tensor([[[[1.0, 3.0], [2.0, 2.0]]]])
        torch.testing.assert_close(mass(excitation_backprop(model, x, 0, "")), ones(1))
        with pytest.warns(UserWarning, match=r"none of the winning probability arrives"):
            excitation_backprop(model, -x, 0, "")

    @pytest.mark.parametrize("bias", [-5.0, -50.0])
    @pytest.mark.parametrize("mean", [lambda y: y.mean((2, 3)), lambda y: nn.AdaptiveAvgPool2d(1)(y).flatten(1)])
    def test_a_mean_of_negative_scores(self, mean, bias):
        model = Net(lambda s, x: mean(s.conv(x)), conv=nn.Conv2d(3, 2, 3))
        nn.init.constant_(model.conv.bias, bias)
        with pytest.warns(UserWarning, match="none of .* arrives: .* a mean of negative values") as told:
            found = excitation_backprop(model, image(), 1, "conv")
        assert len(told) == 1
        assert not found.any()

    def test_a_start_of_ones_own(self):
        """All of what is sent in is 1, whatever it is; of both signs, nobody knows what must arrive."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        nn.init.ones_(model[1].weight)
        x = torch.ones(1, 1, 2, 2)
        for start in ([[3.0, 4.0]], [[1e-3, 0.0]], [[1.0, -3.0]]):
            found = excitation_backprop(model, x, torch.tensor(start), "")
            assert found.sum().item() == pytest.approx(sum(start[0]))

    def test_of_a_dense_output_every_position_sends_1(self):
        model = nn.Conv2d(3, 2, 1, bias=False).eval()
        nn.init.ones_(model.weight)
        torch.testing.assert_close(mass(excitation_backprop(model, image(), 1, "")), 144 * ones())

    def test_one_sample_of_many_is_enough(self):
        model = Net(total, **pointwise(1))
        x = torch.cat([image(channels=1), -image(channels=1)])
        model.run = lambda s, x: (s.conv0(x) + 2).mean((2, 3))
        with pytest.warns(UserWarning, match=LOST):
            excitation_backprop(model, x, 0, "")


def tokens(act) -> Net:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.fc(act(s.lin(s.embed(x).flatten(2).mT)).mean(1))

    torch.manual_seed(0)
    return Net(run, embed=nn.Conv2d(3, 8, 4, 4), lin=nn.Linear(8, 8), fc=nn.Linear(8, 5))


def doubled(t: Tensor) -> Tensor:
    t += t * 2
    return t


IN_PLACE = {
    "relu_": (lambda t: t.relu_(), lambda t: t.relu()),
    "+=": (doubled, lambda t: t + t * 2),
    "nn.ReLU(True)": (nn.ReLU(True), nn.ReLU()),
    "mul_": (lambda t: t.mul_(2), lambda t: t * 2),
    "half of it": (lambda t: t.unflatten(1, (3, 3)).relu_().flatten(1, 2), lambda t: t.relu()),
}


@pytest.mark.filterwarnings("ignore:.*probability", "ignore:.*changed nothing")
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("layer", ["", "embed", "lin"])
def test_in_place_behind_a_linear_layer_on_tokens(name, layer):
    inside, outside = (tokens(act) for act in IN_PLACE[name])
    for method in (excitation_backprop, contrastive_excitation_backprop, saliency.guided_backprop):
        options = {} if layer == "" else {"layout": (3, 3)} if layer == "lin" else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*zero everywhere")
            expected = method(outside, image(), 1, layer, **options)
            torch.testing.assert_close(method(inside, image(), 1, layer, **options), expected)
            shared = shared_forward(inside, image(), [layer])
            torch.testing.assert_close(method(inside, image(), 1, layer, shared=shared, **options), expected)
