"""TorchRay's own functions and pointing game on the cases of a run, on real photos with a trained network."""

from pathlib import Path

import pytest

pytest.importorskip("torchray.attribution.common")

from benchmarks import throughput, torchray_agreement
from saliency.cli.settings import TORCHRAY

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WEIGHTS = DATA / "weights" / "resnet18.pth"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not WEIGHTS.is_file(), reason="the photos and weights are not here"),
    pytest.mark.filterwarnings("default"),  # TorchRay's own
]

NETWORK = ["--arch", "resnet18", "--weights", str(WEIGHTS)]


@pytest.mark.parametrize(
    "data",
    [
        ("--dataset", "imagenet", "--root", str(DATA / "imagenet"), "--size", "227"),
        ("--dataset", "folder", "--root", str(DATA / "coco"), "--class-map", str(DATA / "coco/coco_to_imagenet.json")),
    ],
    ids=["imagenet", "coco"],
)
def test_hits_and_misses_are_torchrays(data, tmp_path, capsys):
    arguments = [*data, *NETWORK, "--limit", "4", "--out", str(tmp_path)]
    assert torchray_agreement.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:9]] == list(TORCHRAY)
    assert lines[-1] == "100.00% of 28 cases are equal, 100.00% but for the edge of the disc"
    verdicts = (tmp_path / "torchray.jsonl").read_text()
    assert torchray_agreement.main(arguments) == 0
    assert (tmp_path / "torchray.jsonl").read_text() == verdicts


def test_throughput_is_measured_in_turns(capsys):
    data = ["--dataset", "imagenet", "--root", str(DATA / "imagenet"), "--size", "64"]
    assert throughput.main([*data, *NETWORK, "--images", "2", "--rounds", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("ratio") == 4
    assert "| guided_backprop |" in said
