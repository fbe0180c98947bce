"""Rows: what is written comes back, and what is no row is found."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saliency.evaluation.running.store import (
    Result,
    append_results,
    cut_last_line,
    decode,
    encode,
    read_results,
    scan_results,
)

ROW = Result("a", 1, "grad_cam", "pointing_game", 1.0, 0.5, None, "0123")
FAILED = ROW._replace(score=None, error="ValueError: broken")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Result,
        image=TEXTS,
        target=st.integers(),
        method=TEXTS,
        metric=TEXTS,
        score=NUMBERS,
        seconds=NUMBERS,
        error=st.none(),
        fingerprint=TEXTS,
        difficult=st.booleans(),
        curve=st.none() | st.lists(NUMBERS).map(tuple),
        point=st.none() | st.tuples(st.integers(), st.integers()),
    )
)
def test_a_row_comes_back_from_its_line_bit_for_bit(row):
    line = encode(row)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert json.loads(line)["image"] == row.image
    assert decode(line) == row


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_number_that_is_not_finite(value):
    with pytest.raises(ValueError, match="JSON"):
        encode(ROW._replace(score=value))


WRONG = {
    "nothing": "",
    "no JSON": "{",
    "no object": "[1, 2]",
    "a number": "3",
    "no name": json.dumps({**ROW._asdict(), "image": None}),
    "another field": json.dumps({**ROW._asdict(), "colour": 1}),
    "a text for a score": json.dumps({**ROW._asdict(), "score": "1"}),
    "NaN": json.dumps({**ROW._asdict(), "score": float("nan")}),
    "true for a class": json.dumps({**ROW._asdict(), "target": True}),
    "neither score nor error": json.dumps({**ROW._asdict(), "score": None}),
    "score and error": json.dumps({**ROW._asdict(), "error": "broken"}),
    "a point of three": json.dumps({**ROW._asdict(), "point": [1, 2, 3]}),
    "a curve of texts": json.dumps({**ROW._asdict(), "curve": ["1"]}),
    "very deep": "[" * 100_000,
    "zeros": "\0" * 40,
}


@pytest.mark.parametrize("case", WRONG)
def test_a_line_that_is_no_row_is_reported_with_file_and_number(tmp_path, case):
    (tmp_path / "rows-3.jsonl").write_text(encode(ROW) + WRONG[case] + "\n" + encode(FAILED))
    problems = []
    assert list(scan_results(tmp_path, problems)) == [ROW, FAILED]
    (problem,) = problems
    assert problem.startswith(f"{tmp_path / 'rows-3.jsonl'}:2: line=")
    with pytest.warns(UserWarning, match=r"rows-3\.jsonl:2"):
        assert len(list(read_results(tmp_path))) == 1


def test_bytes_that_are_no_text_are_reported(tmp_path):
    (tmp_path / "rows-0.jsonl").write_bytes(b"\xff\xfe\n" + encode(ROW).encode())
    problems = []
    assert list(scan_results(tmp_path, problems)) == [ROW]
    assert len(problems) == 1


def test_the_line_that_is_just_written_is_left_out(tmp_path):
    (tmp_path / "rows-0.jsonl").write_text(encode(ROW) + encode(FAILED)[:-5])
    assert list(read_results(tmp_path)) == [ROW]


def test_a_score_counts_before_an_error_wherever_it_is(tmp_path):
    later = FAILED._replace(error="ValueError: still broken")
    other = FAILED._replace(image="b")
    for files in ([[FAILED, other], [ROW]], [[ROW], [FAILED, other]], [[FAILED, ROW, other], []]):
        for number, rows in enumerate(files):
            (tmp_path / f"rows-{number}.jsonl").write_text("".join(map(encode, rows)))
        assert {row.key: row for row in read_results(tmp_path)} == {ROW.key: ROW, other.key: other}
    (tmp_path / "rows-0.jsonl").write_text(encode(FAILED) + encode(later))
    assert list(read_results(tmp_path)) == [later]


@pytest.mark.parametrize("whole", [b"", b"one\n", b"one\ntwo\n", b"x" * 70_000 + b"\n"])
@pytest.mark.parametrize("cut", [b"", b"t", b'{"image": "a', b"y" * 200_000])
def test_what_follows_the_last_newline_is_cut_off(tmp_path, whole, cut):
    path = tmp_path / "rows-0.jsonl"
    path.write_bytes(whole + cut)
    with path.open("a+b", buffering=0) as file:
        cut_last_line(file)
    assert path.read_bytes() == whole


class Partial:
    """A file that takes ten bytes at a time, and no more than ``room`` in all."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        taken = bytes(data[: min(10, self.room)])
        self.room -= len(taken)
        return self.file.write(taken)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_rows_are_written_at_the_end_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows-0.jsonl"
    path.write_text(encode(ROW))
    with path.open("a+b", buffering=0) as file:
        append_results(Partial(file, 10_000), [FAILED, ROW])
        before = path.read_text()
        assert before == encode(ROW) + encode(FAILED) + encode(ROW)
        with pytest.raises(OSError, match="No space"):
            append_results(Partial(file, len(encode(ROW)) + 4), [ROW, FAILED])
        assert path.read_text() == before
        append_results(file, [FAILED])
    assert path.read_text() == before + encode(FAILED)


LIMITED = """
import resource, sys
from saliency.evaluation.running.store import Result, append_results, encode
row = Result("a", 1, "grad_cam", "pointing_game", 1.0, 0.5, None, "0123")
size = len(encode(row))
resource.setrlimit(resource.RLIMIT_FSIZE, (10 * size + 7,) * 2)
with open(sys.argv[1], "a+b", buffering=0) as file:
    for _ in range(100):
        append_results(file, [row] * 3)
"""


def test_the_system_s_own_limit_leaves_whole_rows(tmp_path):
    path = tmp_path / "rows-0.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False, env=environment
    )
    assert f"File too large; earlier results are intact, the same command resumes: '{path}'" in ended.stderr
    assert path.read_text() == encode(ROW) * 9
