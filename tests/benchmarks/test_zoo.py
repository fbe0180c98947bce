"""The sweep over the networks of installed libraries: one small network, what is found there, and what is not."""

import doctest

import pytest
from torch import nn

from benchmarks import zoo, zoo_networks
from benchmarks.zoo_networks import Network


class Swapped(nn.Module):
    """Its map has rows and columns exchanged."""

    def __init__(self):
        super().__init__()
        self.conv, self.turn, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.turn(self.conv(x).relu().mT).relu().mean((2, 3)))


class OfBatches(nn.Module):
    """The output for an image depends on the others."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.fc((x - 0.5 * x.mean(0)).mean((2, 3)))


class OfClips(nn.Module):
    """Its input is (B, T, 3, h, w), as of video transformers."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv3d(3, 4, (2, 4, 4), (2, 4, 4)), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.conv(x.transpose(1, 2)).relu().mean((2, 3, 4)))


@pytest.fixture
def sweep(monkeypatch, capsys, tmp_path):
    """Run the sweep over networks of our own, in place of torchvision's."""

    def run(networks, *arguments, methods=("--method", "grad_cam")):
        found = {name: Network(build, (3, 16, 16)) for name, build in networks.items()}
        monkeypatch.setitem(zoo_networks.LIBRARIES, "torchvision", lambda library: iter(found.items()))
        out = str(tmp_path / "zoo.jsonl")
        code = zoo.main(["--library", "torchvision", *methods, "--out", out, *arguments])
        return code, capsys.readouterr().out

    return run


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def test_the_table_says_what_is_wrong(sweep):
    def broken():
        raise RuntimeError("no such network")

    code, table = sweep({"plain": plain, "swapped": Swapped, "of_batches": OfBatches, "broken": broken})
    lines = {line.split()[1]: line for line in table.splitlines()[1:5]}
    assert "4 x 4" in lines["plain"]
    assert lines["plain"].endswith("ok")
    assert "planted corner not found" in lines["swapped"]
    assert "own output of a batch differs" in lines["of_batches"]
    assert "RuntimeError: no such network" in lines["broken"]
    assert "1 of 4 networks without a remark" in table
    assert code == 1


def test_a_clip_has_a_map_of_each_frame_or_of_its_grid():
    row = zoo.examine("torchvision", "clips", Network(OfClips, (8, 3, 16, 16)), ["gradient", "grad_cam"])
    assert (row.grid, row.verdict) == ((4, 4, 4), "")


def test_a_network_is_examined_once(sweep):
    built = []

    def counted():
        built.append(1)
        return plain()

    assert sweep({"one": counted, "other": counted}, "--network", "one")[0] == 0
    assert sweep({"one": counted, "other": counted})[0] == 0
    assert len(built) == 2


def test_the_examples_of_the_sweep():
    assert doctest.testmod(zoo) == (0, 2)


def test_a_library_that_is_missing_is_left_out(monkeypatch, capsys, tmp_path):
    def missing(library):
        raise ModuleNotFoundError(library)

    monkeypatch.setattr(zoo_networks, "import_module", missing)
    assert zoo.main(["--library", "timm", "--out", str(tmp_path / "zoo.jsonl")]) == 0
    assert "timm is not installed" in capsys.readouterr().err


def test_all_quick_methods_are_run_where_none_is_named(sweep):
    code, table = sweep({"plain": plain}, methods=())
    assert code == 0
    assert "1 of 1 networks without a remark" in table
