"""Result files, as users meet them: damaged, converted by an editor, copied to where nothing can be written."""

import errno
import json

import pytest
import torch
from torch import nn

from saliency import gradient
from saliency.evaluation.cases import Annotation, Instance
from saliency.evaluation.running import ranks as folders
from saliency.evaluation.running.runner import run
from saliency.evaluation.running.store import Result, decode, encode, read_results, scan_results
from saliency.networks.models import Preprocessing

ROWS = [
    Result("a", 1, "grad_cam", "pointing_game", 1.0, 0.5, None, "0123", point=(3, 4)),
    Result("bé ü", 12, "rise", "insertion", 0.125, 1e-3, None, "4567", True, (0.0, 0.25), None, True),
    Result('c\r\n"}', 0, "rise", "road", None, 0.25, "ValueError: broken", "89ab"),
]


class Photos:
    """Two random photos."""

    name, root, source, classes, problems = "photos", None, "", ("a",), ()
    annotations = tuple(Annotation(f"p{i}", (8, 8), (Instance(0, (1, 1, 5, 5)),)) for i in range(2))

    def image(self, index):
        return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))


def broken(model, input, target):
    raise RuntimeError("no map")


def play(out, method=gradient, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval()
    preprocessing = Preprocessing(8, 1, False, (0.0,) * 3, (1.0,) * 3, ("a",))
    return run(
        Photos(), model, preprocessing, {"method": (method, {})}, {"pointing_game": {}}, out, gallery=0, **options
    )


@pytest.mark.parametrize("row", ROWS, ids=["score", "curve", "error"])
def test_every_flipped_bit_is_found(row):
    line = encode(row).encode()
    taken = 0
    for place in range(len(line) - 1):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[place] ^= 1 << bit
            try:
                taken += decode(flipped.decode()) != row
            except ValueError:
                continue
    assert taken == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace("0.125", "0.225"),
        lambda line: line.replace("0.125", "0.152"),
        lambda line: line.replace('"check"', '"cheque"'),
        lambda line: line[: line.index(', "check"')].replace("0.125", "0.225") + line[line.index(', "check"') :],
    ],
)
def test_a_changed_line_is_named(tmp_path, change):
    (tmp_path / "rows-0.jsonl").write_text(encode(ROWS[0]) + change(encode(ROWS[1])), "utf-8")
    problems = []
    assert list(scan_results(tmp_path, problems)) == [ROWS[0]]
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'rows-0.jsonl'}:2: line=")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_rows_are_read_whatever_ends_a_line(tmp_path, end):
    text = "".join(map(encode, ROWS)).replace("\n", end)
    (tmp_path / "rows-0.jsonl").write_bytes(text.encode())
    problems = []
    assert list(scan_results(tmp_path, problems)) == ROWS
    assert problems == []
    (tmp_path / "rows-0.jsonl").write_bytes((text + '{"image": "cut').encode())
    assert list(scan_results(tmp_path, problems)) == ROWS


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_a_run_goes_on_behind_converted_lines(tmp_path, end):
    play(tmp_path, limit=1)
    path = tmp_path / "rows-0.jsonl"
    first = path.read_text()
    path.write_bytes((first.replace("\n", end) + '{"image": "cut').encode())
    outcome = play(tmp_path)
    assert (outcome.problems, outcome.lines[0].cases, outcome.lines[0].missing) == ((), 2, 0)
    assert [row.image for row in read_results(tmp_path)] == ["p0", "p1"]
    assert path.read_bytes().startswith(first.strip().encode() + end.encode() + b'{"image": "p1"')


def test_rows_of_an_earlier_release_have_no_checksum(tmp_path):
    lines = [json.dumps(row._asdict()) + "\n" for row in ROWS]
    (tmp_path / "rows-0.jsonl").write_text("".join(lines))
    assert list(scan_results(tmp_path, [])) == ROWS


def cannot_write(path):
    raise OSError(errno.EROFS, "Read-only file system", str(path))


@pytest.mark.parametrize("kind", ["read-only file system", "no permission", "lock"])
def test_the_table_of_a_finished_run_needs_no_writing(tmp_path, monkeypatch, kind):
    written = play(tmp_path)

    def refuse(path):
        if kind != "lock" or path.name == "lock":
            raise OSError(errno.EACCES if kind == "no permission" else errno.EROFS, kind, str(path))
        return holding(path)

    holding = folders.holding
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(folders, "holding", refuse)
    assert play(tmp_path).table == written.table
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("case", ["a case is missing", "nothing is there", "errors are to be tried again"])
def test_what_is_not_finished_says_that_it_cannot_write(tmp_path, monkeypatch, case):
    method = broken if case == "errors are to be tried again" else gradient
    if case != "nothing is there":
        play(tmp_path, method, limit=1 if case == "a case is missing" else None)
    monkeypatch.setattr(folders, "holding", cannot_write)
    with pytest.raises(ValueError, match=r"out='.*' cannot be used \(Read-only file system\)"):
        play(tmp_path, method, retry_errors=case == "errors are to be tried again")


def test_a_finished_run_with_errors_is_shown_from_where_nothing_can_be_written(tmp_path, monkeypatch):
    play(tmp_path, broken)
    monkeypatch.setattr(folders, "holding", cannot_write)
    assert play(tmp_path, broken).failed == 2
