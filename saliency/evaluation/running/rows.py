"""Rows: finished results, one JSON object a line with a checksum, in files that only grow."""

import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

Key: TypeAlias = tuple[str, int, str, str, str]

_TAIL = 65536
_CHECKED = re.compile(r'(\{.*), "check": "([0-9a-f]{8})"\}', re.DOTALL)


class Row(NamedTuple):
    """The result of one case, method and metric.

    ``image`` is the annotation's name, ``target`` the class index of the data set. ``score`` is None where the case
    failed, and then ``error`` says why. ``seconds`` is its share of the time for map and metric. ``curve`` holds what
    the score sums up (insertion, deletion, IoU over thresholds), ``point`` the map's maximum (x, y), which a
    ``constant`` map does not have.
    """

    image: str
    target: int
    method: str
    metric: str
    score: float | None
    seconds: float
    error: str | None
    fingerprint: str
    difficult: bool = False
    curve: tuple[float, ...] | None = None
    point: tuple[int, int] | None = None
    constant: bool = False


def key_of(row: Row) -> Key:
    """What a row is the result of; a second row of the same key is the result of another try."""
    return row.image, row.target, row.method, row.metric, row.fingerprint


def encode(row: Row) -> str:
    """The row as a line, which ends with the CRC-32 of what stands before it.

    ``ValueError`` for a number that is not finite: JSON has none.

    >>> decode(encode(Row("a", 1, "grad_cam", "pointing_game", 1.0, 0.5, None, "0"))).score
    1.0
    """
    written = {name: value for name, value in row._asdict().items() if value != Row._field_defaults.get(name, ...)}
    text = json.dumps(written, ensure_ascii=False, allow_nan=False).removesuffix("}")
    return f'{text}, "check": "{_checksum(text)}"}}\n'


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def decode(line: str) -> Row:
    """The row that a line holds. ``ValueError`` says what is wrong with a line that holds none.

    A line without a checksum is one of an earlier release.
    """
    checked = _CHECKED.fullmatch(line.strip())
    if checked and _checksum(checked[1]) != checked[2]:
        raise ValueError(f"line={line[:80]!r} has changed since it was written; a line as it was written is accepted.")
    try:
        row = Row(**json.loads(f"{checked[1]}}}" if checked else line))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"line={line[:80]!r} is no row ({error}); a JSON object with a row's fields is accepted."
        ) from error
    row = row._replace(curve=_as_tuple(row.curve), point=_as_tuple(row.point))
    wrong = [name for name, fits in _checks(row).items() if not fits]
    if wrong:
        raise ValueError(f"line={line[:80]!r} has a wrong {wrong[0]}; a JSON object with a row's fields is accepted.")
    return row


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checks(row: Row) -> dict[str, bool]:
    texts = ("image", "method", "metric", "fingerprint")
    return {name: isinstance(getattr(row, name), str) for name in texts} | {
        "target": type(row.target) is int,
        "score": row.score is None or _is_number(row.score),
        "seconds": _is_number(row.seconds),
        "error": isinstance(row.error, str) if row.score is None else row.error is None,
        "difficult": isinstance(row.difficult, bool),
        "constant": isinstance(row.constant, bool),
        "curve": row.curve is None or (isinstance(row.curve, tuple) and all(map(_is_number, row.curve))),
        "point": row.point is None or (isinstance(row.point, tuple) and [type(v) for v in row.point] == [int, int]),
    }


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def row_files(folder: str | Path) -> list[Path]:
    """The files of rows in a folder."""
    return sorted(Path(folder).glob("rows-*.jsonl"))


def scan_rows(folder: str | Path, problems: list[str] | None = None) -> Iterator[Row]:
    """Yield every row of the folder, as they stand in the files; a line that a run is just writing is left out.

    A line may end as it does on any system. ``problems`` is given the file, number and fault of each whole line that
    is no row; without it they are warned of.
    """
    for path in row_files(folder):
        with path.open("rb") as file:
            lines = (line for part in file for line in part.splitlines(keepends=True))
            for number, line in enumerate(lines, 1):
                if not line.endswith((b"\n", b"\r")):
                    continue
                try:
                    yield decode(line.decode())
                except ValueError as error:
                    _report(f"{path}:{number}: {error}", problems)


def _report(problem: str, problems: list[str] | None) -> None:
    if problems is None:
        warnings.warn(problem, stacklevel=3)
    else:
        problems.append(problem)


def read_rows(folder: str | Path, problems: list[str] | None = None) -> Iterator[Row]:
    """Yield the rows of every ``rows-*.jsonl`` in the folder, each case once: a score before errors, a later error
    before an earlier one. ``problems``: see :func:`scan_rows`.
    """
    rows: dict[Key, Row] = {}
    for row in scan_rows(folder, problems):
        key = key_of(row)
        if row.score is not None or key not in rows or rows[key].score is None:
            rows[key] = row
    yield from rows.values()


def cut_last_line(file: IO[bytes]) -> None:
    """Truncate a file opened ``a+b`` behind its last line end: what follows was cut off while it was written."""
    end = file.seek(0, os.SEEK_END)
    kept = end
    while kept:
        start = max(0, kept - _TAIL)
        file.seek(start)
        part = file.read(kept - start)
        line_end = max(part.rfind(b"\n"), part.rfind(b"\r"))
        if line_end >= 0:
            kept = start + line_end + 1
            break
        kept = start
    if kept < end:
        file.truncate(kept)


def append_rows(file: IO[bytes], rows: Sequence[Row]) -> None:
    """Write the rows at the end of an unbuffered file opened ``a+b``, all of them or none.

    ``OSError`` where they cannot be written, as on a full disk; what was written of them is taken away again.
    """
    start = file.seek(0, os.SEEK_END)
    data = memoryview("".join(map(encode, rows)).encode())
    try:
        while data:
            data = data[file.write(data) or 0 :]
    except BaseException as error:
        file.truncate(start)
        if isinstance(error, OSError):
            problem = f"{error.strerror}; the rows before are whole, and the same command goes on"
            raise OSError(error.errno, problem, str(file.name)) from error
        raise
