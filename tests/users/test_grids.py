"""Grids: where a network lays its cells out is what its own pass shows, in one, two and three dimensions.

A network's score reads one token alone, so that the map is not zero in one cell: the one where that token is.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saliency
from saliency.engine import record
from saliency.engine.watching import Watching
from tests.cases import Net


def image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def seeded(function: Callable[..., Any], **parts: Callable[[], nn.Module]) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(function, **{name: part() for name, part in parts.items()})


def parts(channels: int = 6, patch: int = 4, kind: type = nn.Conv2d, inputs: int = 3) -> dict[str, Any]:
    return {
        "embed": lambda: kind(inputs, channels, patch, patch),
        "norm": lambda: nn.LayerNorm(channels),
        "mix": lambda: nn.Linear(channels, channels),
        "fc": lambda: nn.Linear(channels, 2),
    }


def tokens_of(net: Net, x: Tensor) -> Tensor:
    return net.embed(x).flatten(2).mT


def only_cell(found: Tensor) -> tuple[int, ...]:
    """The one cell of a map (1, 1, ...) that is not zero."""
    (at,) = found[0, 0].nonzero().tolist()
    return tuple(at)


def reads(tokens: Callable[[Net, Tensor], Tensor], at: int, **more: Any) -> Net:
    """A network that normalises tokens (N, L, C) and reads number ``at`` of them."""
    return seeded(lambda s, x: s.fc(s.norm(tokens(s, x))[:, at]), **parts(**more))


def check(net: nn.Module, x: Tensor, grid: Sequence[int], cell: Sequence[int], layer: str = "norm") -> None:
    """The map has that grid and is not zero in that cell alone, for a batch too; activation and gradient agree."""
    for batch in (x, torch.cat([x, x])):
        found = saliency.saliency(net, batch, 1, layer)
        assert found.shape[1:] == (1, *grid)
        assert only_cell(found[-1:]) == tuple(cell)


# --- 2a: a model that resizes its input ------------------------------------------------------------------------------

RESIZED = {
    "to a square": (lambda x: F.interpolate(x, (32, 32)), (1, 3, 48, 64), (8, 8)),
    "to another aspect": (lambda x: F.interpolate(x, (16, 40), mode="bilinear"), (1, 3, 60, 30), (4, 10)),
    "by a crop": (lambda x: x[..., 2:22, 5:33], (1, 3, 32, 48), (5, 7)),
    "by padding": (lambda x: F.pad(x, (0, 36)), (1, 3, 20, 20), (5, 14)),
}


@pytest.mark.parametrize("name", RESIZED)
def test_a_model_that_resizes_its_input(name):
    resize, shape, grid = RESIZED[name]
    cell = (2, grid[1] - 1)
    at = cell[0] * grid[1] + cell[1]
    check(reads(lambda s, x: tokens_of(s, resize(x)), at), image(*shape), grid, cell)
    # Channels last: (N, h, w, C).
    net = seeded(lambda s, x: s.fc(s.norm(s.embed(resize(x)).permute(0, 2, 3, 1))[:, cell[0], cell[1]]), **parts())
    check(net, image(*shape), grid, cell)


def test_the_layer_search_reads_the_same_grid():
    net = seeded(lambda s, x: s.fc(s.norm(tokens_of(s, F.interpolate(x, (32, 32)))).mean(1)), **parts())
    x = image(1, 3, 48, 64)
    assert saliency.find_layer(net, x, target=1) == "norm"
    assert saliency.grad_cam(net, x, 1).shape == (1, 1, 8, 8)


# --- 2b: channels of a flattened map ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [16, 64, 256])
@pytest.mark.parametrize("size", [(28, 28), (20, 28), (12, 36)])
def test_channels_of_a_flattened_map(channels, size):
    """The gradient at (N, C, h * w) is that at (N, C, h, w), by autograd; two readings are refused."""
    net = seeded(
        lambda s, x: s.fc((s.flat(s.embed(x)) ** 2).mean(2)), flat=lambda: nn.Flatten(2), **parts(channels=channels)
    )
    cells = size[0] * size[1] // 16
    if 0 <= channels - cells <= 8:
        with pytest.raises(ValueError, match=rf"^layout=None is ambiguous .*\(2, {channels}, {cells}\).*unflatten"):
            saliency.saliency(net, image(2, 3, *size), 1, "flat")
        return
    features = net.embed(image(2, 3, *size)).detach().requires_grad_()
    net.fc((features.flatten(2) ** 2).mean(2))[:, 1].sum().backward()
    found = saliency.saliency(net, image(2, 3, *size), 1, "flat")
    torch.testing.assert_close(found, features.grad.abs().amax(1, keepdim=True))
    grid = (size[0] // 4, size[1] // 4)
    torch.testing.assert_close(saliency.saliency(net, image(2, 3, *size), 1, "flat", layout=grid), found)


@pytest.mark.parametrize("channels", [48, 49, 52, 57])
def test_as_many_channels_as_cells_are_never_read_as_tokens_silently(channels):
    net = seeded(lambda s, x: s.fc(s.flat(s.embed(x)).mean(2)), flat=lambda: nn.Flatten(2), **parts(channels=channels))
    x = image(1, 3, 28, 28)
    if channels == 48:
        assert saliency.saliency(net, x, 1, "flat").shape == (1, 1, 7, 7)
        return
    with pytest.raises(ValueError, match=r"^layout=None is ambiguous .*; expected layout=\(7, 7\) for tokens, or lam"):
        saliency.saliency(net, x, 1, "flat")
    found = saliency.saliency(net, x, 1, "flat", layout=lambda y: y.unflatten(2, (7, 7)))
    assert found.shape == (1, 1, 7, 7)


def test_a_convolution_of_one_dimension_over_a_flattened_map():
    net = seeded(lambda s, x: s.fc(s.line(s.embed(x).flatten(2))[:, :, 17]), line=lambda: nn.Conv1d(6, 6, 1), **parts())
    check(net, image(1, 3, 20, 28), (5, 7), (2, 3), "line")


def test_token_mixing_has_channels_first():
    """An MLP-Mixer's own axes, in a square grid with other channels than cells."""
    net = seeded(
        lambda s, x: s.fc(s.drop(s.norm(tokens_of(s, x)).mT)[:, :, 9]), drop=lambda: nn.Dropout(0.5), **parts()
    )
    check(net, image(1, 3, 20, 20), (5, 5), (1, 4), "drop")


# --- 2c, 2d: one and three dimensions, channels last, tokens ---------------------------------------------------------


@pytest.mark.parametrize("length", [160, 44, 24])
def test_one_dimension_with_channels_last(length):
    more = parts(32, kind=nn.Conv1d, inputs=1)
    net = seeded(lambda s, x: s.fc(s.norm(s.embed(x).movedim(1, -1))[:, 3]), **more)
    check(net, image(1, 1, length), (length // 4,), (3,))
    mean = seeded(lambda s, x: s.fc(s.norm(s.embed(x).movedim(1, -1)).mean(1)), **more)
    assert saliency.find_layer(mean, image(1, 1, length), target=1) == "norm"


def test_one_dimension_with_a_class_token_and_from_a_waveform():
    def tokens(s: Net, x: Tensor) -> Tensor:
        y = s.embed(x).mT
        return torch.cat([y.mean(1, keepdim=True), y], 1)

    net = reads(tokens, 5, kind=nn.Conv1d, inputs=1)
    check(net, image(1, 1, 60), (15,), (4,))
    raw = reads(lambda s, x: tokens(s, x[:, None]), 5, kind=nn.Conv1d, inputs=1)
    check(raw, image(1, 60), (15,), (4,))
    assert only_cell(saliency.saliency(net, image(1, 1, 60), 1, "norm", layout=(15,))) == (4,)


def test_one_dimension_with_channels_first_is_as_it_was():
    net = nn.Sequential(nn.Conv1d(1, 12, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 2)).eval()
    for name in ("0", "1"):
        assert saliency.grad_cam(net, image(1, 1, 20), 1, name).shape == (1, 1, 9)


def test_one_dimension_of_which_nothing_was_seen():
    """Patches by a view: (N, l, C) from (N, 1, L); by a matrix product with strides nothing shows."""
    viewed = seeded(lambda s, x: s.fc(s.norm(s.mix(x.unfold(2, 6, 6).flatten(1, 2)))[:, 3]), **parts())
    check(viewed, image(1, 1, 60), (10,), (3,))
    hidden = seeded(lambda s, x: s.fc(s.norm(x.as_strided((len(x), 10, 6), (60, 6, 1)))[:, 3]), **parts())
    with pytest.raises(ValueError, match=r"^layout=None is ambiguous .*expected layout='channels_first' or"):
        saliency.saliency(hidden, image(1, 1, 60), 1, "norm")
    assert only_cell(saliency.saliency(hidden, image(1, 1, 60), 1, "norm", layout="channels_last")) == (3,)


VOLUMES = {"volume": (1, 1, 16, 24, 20), "flat": (1, 1, 8, 40, 12), "cube": (1, 1, 16, 16, 16)}


@pytest.mark.parametrize("name", VOLUMES)
def test_three_dimensions(name):
    """Channels last, tokens, tokens behind a class token, named or not."""
    x, more = image(*VOLUMES[name]), parts(kind=nn.Conv3d, inputs=1)
    grid, cell = tuple(side // 4 for side in x.shape[2:]), (1, 2, 1)
    at = (cell[0] * grid[1] + cell[1]) * grid[2] + cell[2]
    check(seeded(lambda s, x: s.fc(s.norm(s.embed(x).movedim(1, -1))[:, 1, 2, 1]), **more), x, grid, cell)
    check(reads(tokens_of, at, kind=nn.Conv3d, inputs=1), x, grid, cell)
    behind = seeded(
        lambda s, x: s.fc(s.norm(torch.cat([x.new_zeros(len(x), 1, 6), tokens_of(s, x)], 1))[:, at + 1]), **more
    )
    check(behind, x, grid, cell)
    assert only_cell(saliency.saliency(behind, x, 1, "norm", layout=grid)) == cell


def test_clips_whose_frames_stand_first():
    """(N, T, C, H, W), as video transformers take them: the grid is one of three dimensions, whatever the input's."""
    net = seeded(
        lambda s, x: s.fc(s.norm(s.embed(x.transpose(1, 2)).flatten(2).mT)[:, 9]), **parts(kind=nn.Conv3d, inputs=3)
    )
    check(net, image(1, 8, 3, 16, 12), (2, 4, 3), (0, 3, 0))
    spectrogram = seeded(lambda s, x: s.fc(s.norm(tokens_of(s, x[:, None].mT))[:, 12]), **parts(inputs=1))
    check(spectrogram, image(1, 40, 16), (4, 10), (1, 2))  # (N, time, frequencies)


# --- 2e: strides that round up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [((80, 160), (3, 5)), ((65, 33), (3, 2)), ((100, 30), (4, 1))])
def test_strides_that_round_up(size, grid):
    def stem() -> nn.Module:
        return nn.Sequential(*[nn.Conv2d(6 if i else 3, 6, 3, 2, 1) for i in range(5)])

    cell = (grid[0] - 1, 0)
    net = seeded(lambda s, x: s.fc(s.norm(s.stem(x).flatten(2).mT)[:, cell[0] * grid[1]]), stem=stem, **parts())
    check(net, image(1, 3, *size), grid, cell)
    last = seeded(lambda s, x: s.fc(s.norm(s.stem(x).movedim(1, -1))[:, cell[0], 0]), stem=stem, **parts())
    check(last, image(1, 3, *size), grid, cell)


# --- extra tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("front", "behind"), [(0, 0), (1, 0), (2, 4), (64, 0), (1, 100), (0, 20), (200, 7)])
def test_extra_tokens_in_front_and_behind(front, behind):
    def tokens(s: Net, x: Tensor) -> Tensor:
        extra = x.new_zeros(len(x), front, 6), x.new_zeros(len(x), behind, 6)
        return torch.cat([extra[0], tokens_of(s, x), extra[1]], dim=1)

    for size, grid in (((28, 28), (7, 7)), ((20, 40), (5, 10)), ((96, 96), (24, 24))):
        check(reads(tokens, front + grid[1] + 2), image(1, 3, *size), grid, (1, 2))


def test_tokens_that_are_joined_in_steps():
    def tokens(s: Net, x: Tensor) -> Tensor:
        patches = torch.concat((x.new_zeros(len(x), 3, 6), tokens_of(s, x)), -2)
        return torch.cat([x.new_zeros(len(x), 1, 6), patches], 1)

    check(reads(tokens, 4 + 12), image(1, 3, 20, 40), (5, 10), (1, 2))


def test_tokens_that_are_written_into_a_buffer():
    """No join was seen: what is too much stands in front, and there is little of it."""

    def tokens(s: Net, x: Tensor) -> Tensor:
        patches = tokens_of(s, x)
        buffer = x.new_zeros(len(x), 40 + patches.shape[1], 6)
        buffer[:, 40:] = patches
        return buffer

    check(reads(tokens, 40 + 12), image(1, 3, 20, 40), (5, 10), (1, 2))
    with pytest.raises(ValueError, match=r"^layout=None does not describe a grid for an activation .*\(1, 46, 6\)"):
        saliency.saliency(reads(tokens, 3), image(1, 3, 8, 12), 1, "norm")  # 40 are not few beside 6


# --- grids that change on the way, and those that no convolution makes -----------------------------------------------


def merge(x: Tensor) -> Tensor:
    """Patch merging of (N, h, w, C): every second cell of every second row."""
    return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))[:, ::2, ::2]


def merged_tokens(s: Net, x: Tensor) -> Tensor:
    y = merge(s.embed(x).permute(0, 2, 3, 1))
    return y.reshape(len(x), -1, 6)


def windows(s: Net, x: Tensor) -> Tensor:
    """Shifted windows of 2 x 2 cells, and back."""
    y = torch.roll(s.embed(x).permute(0, 2, 3, 1), (1, 1), (1, 2))
    n, h, w, c = y.shape
    parted = s.mix(y.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c))
    y = parted.view(n, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c)
    return torch.roll(y, (-1, -1), (1, 2)).view(n, h * w, c)


def pooled(s: Net, x: Tensor) -> Tensor:
    """Tokens that are folded back, pooled and flattened again, behind a token of their own."""
    y = s.embed(x)
    tokens = s.mix(y.flatten(2).mT).mT.reshape(y.shape)
    tokens = F.avg_pool2d(tokens, 2).flatten(2).mT
    return torch.cat([tokens.mean(1, keepdim=True).detach(), tokens], 1)[:, 1:]


def folded(s: Net, x: Tensor) -> Tensor:
    """Patches by a view and a transposition, as in masked autoencoders."""
    n, c, height, width = x.shape
    h, w = height // 4, width // 4
    y = x.reshape(n, c, h, 4, w, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, h * w, 16 * c)
    return y[..., :6]


def unfolded(s: Net, x: Tensor) -> Tensor:
    return F.unfold(x, 4, stride=4).mT[..., :6]


def twice_unfolded(s: Net, x: Tensor) -> Tensor:
    y = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
    return y.flatten(3).flatten(1, 2)[..., :6]


def dropped(function: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    """The same on another size than the input's."""
    return lambda s, x: function(s, F.interpolate(x, (24, 40)))


MADE = {
    "merged": (merged_tokens, (3, 5)),
    "windows": (windows, (6, 10)),
    "pooled": (pooled, (3, 5)),
    "folded": (folded, (6, 10)),
    "unfolded": (unfolded, (6, 10)),
    "unfolded twice": (twice_unfolded, (6, 10)),
}


@pytest.mark.parametrize("name", MADE)
def test_grids_however_they_are_made(name):
    function, grid = MADE[name]
    check(reads(function, grid[1] + 3), image(1, 3, 24, 40), grid, (1, 3))
    check(reads(dropped(function), grid[1] + 3), image(1, 3, 30, 30), grid, (1, 3))


def test_merged_cells_with_channels_last():
    """(N, h, w, C) behind patch merging, with as many channels as a side has cells, or not, and an odd side."""
    for channels in (6, 5):
        net = seeded(
            lambda s, x: s.fc(s.norm(merge(s.embed(x).permute(0, 2, 3, 1)))[:, 2, 1]), **parts(channels=channels)
        )
        check(net, image(1, 3, 44, 28), (6, 4), (2, 1))


def test_a_grid_whose_rows_are_columns():
    """Tokens column by column: the grid is the transposed one, which the pass shows."""
    net = reads(lambda s, x: s.embed(x).permute(0, 3, 2, 1).reshape(len(x), -1, 6), 4)
    check(net, image(1, 3, 12, 28), (7, 3), (1, 1))


def test_heads_are_no_grid():
    """Views of tokens as heads, of which the product is that of the tokens."""

    def tokens(s: Net, x: Tensor) -> Tensor:
        y = torch.cat([x.new_zeros(len(x), 1, 6), tokens_of(s, x)], 1)  # 3 x 7 cells and one: 2 x 11
        y = s.mix(y.view(len(x), 2, 11, 6)).view(len(x), 22, 6)
        y = y.mT.reshape(len(x), 2, 3, 22).flatten(1, 2).mT  # six channels as two heads
        return y.view(len(x), 22, 2, 3).flatten(2)

    check(reads(tokens, 1 + 7 + 4), image(1, 3, 12, 28), (3, 7), (1, 4))


def test_units_that_are_merged_in_another_order():
    """Tokens unit by unit have no grid that could be drawn, but what is left when all units are merged has one."""

    def unrolled(s: Net, x: Tensor) -> Tensor:
        n, (h, w) = len(x), (x.shape[2] // 8, x.shape[3] // 8)
        y = tokens_of(s, x).view(n, h, 2, w, 2, 6).permute(0, 2, 4, 1, 3, 5)
        return s.mix(y.flatten(0, 2).reshape(n, -1, 6))

    def merged(s: Net, x: Tensor) -> Tensor:
        y = unrolled(s, x)
        return y.view(len(x), 4, -1, 6).amax(1)

    x = image(1, 3, 24, 40)
    check(reads(merged, 7), x, (3, 5), (1, 2))
    for layer in ("mix", "norm"):
        with pytest.raises(ValueError, match="does not describe a grid"):
            saliency.saliency(reads(unrolled, 7), x, 1, layer)


def test_two_branches_of_other_grids():
    """Each layer has the grid of its own tokens, whichever was made last."""

    def two(s: Net, x: Tensor) -> Tensor:
        fine, coarse = tokens_of(s, x), tokens_of(s, F.interpolate(x, (12, 20)))
        return s.fc(s.norm(fine)[:, 12] + s.mix(coarse)[:, 7])

    x = image(1, 3, 24, 40)
    check(seeded(two, **parts()), x, (6, 10), (1, 2), "norm")
    check(seeded(two, **parts()), x, (3, 5), (1, 2), "mix")


# --- where nothing was seen ------------------------------------------------------------------------------------------


def hidden(height: int, width: int, extra: int) -> Callable[[Net, Tensor], Tensor]:
    """Tokens of 4 x 4 patches, in a way that shows nothing."""

    def tokens(s: Net, x: Tensor) -> Tensor:
        patches = x[:, 0, ::4, ::4]
        y = torch.stack([patches[:, i, j] for i in range(height) for j in range(width)], 1)
        y = y[..., None] * torch.arange(1.0, 7)
        return F.pad(y, (0, 0, extra, 0))

    return tokens


def test_a_guess_from_the_size_where_only_one_fits():
    check(reads(hidden(5, 10, 1), 1 + 12), image(1, 3, 20, 40), (5, 10), (1, 2))


def test_a_guess_is_refused_where_two_fit():
    """4 x 4 cells and one more token, or 3 x 3 and eight."""
    net = reads(hidden(4, 4, 1), 6)
    with pytest.raises(ValueError, match=r"^layout=None is ambiguous .*\(1, 17, 6\); expected layout=\(4, 4\) for"):
        saliency.saliency(net, image(1, 3, 16, 16), 1, "norm")
    assert only_cell(saliency.saliency(net, image(1, 3, 16, 16), 1, "norm", layout=(4, 4))) == (1, 1)


# --- every way to a map ----------------------------------------------------------------------------------------------


def _summed(x: Tensor) -> Tensor:
    return x.grad.abs().sum(1, keepdim=True)


def yolos(s: Net, x: Tensor) -> Tensor:
    """A resized input, a class token in front, seventy queries behind; the score reads cell (1, 2) of 5 x 10."""
    patches = tokens_of(s, F.interpolate(x, (20, 40)))
    tokens = torch.cat([x.new_zeros(len(x), 1, 6), patches, x.new_zeros(len(x), 70, 6)], 1)
    return s.fc(s.norm(s.mix(tokens))[:, 13].pow(2))


WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "input of a layer": lambda m, x: saliency.saliency(m, x, 1, "mix", attribute_to_layer_input=True),
    "path at the input": lambda m, x: saliency.saliency(m, x, 1, "mix", path=saliency.noise(3), internal_batch_size=2),
    "path at the layer": lambda m, x: saliency.saliency(
        m, x, 1, "mix", path=saliency.line(n_steps=3, at_layer=True), gradient_to_saliency=_summed
    ),
    "internal influence": lambda m, x: saliency.internal_influence(
        m, x, 1, "mix", n_steps=3, reduction=saliency.max_channels
    ),
    "shared": lambda m, x: saliency.saliency(m, x, 1, "mix", shared=saliency.shared_forward(m, x, ["mix"])),
    "list": lambda m, x: saliency.saliency(m, x, 1, ["norm", "mix"])[1],
    "all calls": lambda m, x: saliency.saliency(m, x, 1, "mix", call="all"),
    "guided": lambda m, x: saliency.guided_backprop(m, x, 1, "mix"),
    "debug": lambda m, x: saliency.saliency(m, x, 1, "mix", debug=True)[0],
    "ablation": lambda m, x: saliency.feature_ablation(m, x, 1, "mix"),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_a_map_reads_the_same_grid(name):
    found = WAYS[name](seeded(yolos, **parts()), image(2, 3, 24, 24))
    assert found.shape == (2, 1, 5, 10)
    assert only_cell(found[:1]) == only_cell(found[1:]) == (1, 2)


@pytest.mark.parametrize("method", ["score_cam", "ablation_cam", "recipro_cam", "grad_cam_plus_plus"])
def test_other_cams_read_the_same_grid(method):
    found = getattr(saliency, method)(seeded(yolos, **parts()), image(1, 3, 24, 24), 1, "mix")
    assert found.shape == (1, 1, 5, 10)


def test_extremal_perturbations_at_tokens():
    net = seeded(yolos, **parts())
    masks, _ = saliency.extremal_perturbation(
        net, image(1, 3, 24, 24), 1, saliency_layer="mix", max_iter=2, step=1, sigma=1
    )
    assert masks.shape[-2:] == (5, 10)


def test_one_model_on_inputs_of_other_sizes():
    """What was seen belongs to the call: nothing is remembered of it."""
    net = seeded(lambda s, x: s.fc(s.norm(tokens_of(s, x))[:, 9]), **parts())
    for size, cell in (((24, 16), (2, 1)), ((16, 24), (1, 3)), ((8, 48), (0, 9))):
        check(net, image(1, 3, *size), (size[0] // 4, size[1] // 4), cell)


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_a_convolutional_layer_is_not_watched(monkeypatch):
    watches = []

    def watching() -> Watching:
        watches.append(Watching())
        return watches[-1]

    monkeypatch.setattr(record, "Watching", watching)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    net = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    for layer in ("0", "0.0", "0.1", ""):
        saliency.grad_cam(net, image(1, 3, 8, 8), 1, layer)
    assert not watches
    saliency.grad_cam(net, image(1, 3, 8, 8), 1, "0.2")
    assert len(watches) == 1


def test_a_watched_layer_costs_no_pass_more():
    passes = []
    net = reads(tokens_of, 9)
    net.embed.register_forward_hook(lambda *args: passes.append(1))
    assert saliency.saliency(net, image(1, 3, 24, 16), 1, "norm").shape == (1, 1, 6, 4)
    assert len(passes) == 1
    assert prod(saliency.saliency(net, image(1, 3, 16, 24), 1, "norm").shape) == 24
    assert len(passes) == 2
