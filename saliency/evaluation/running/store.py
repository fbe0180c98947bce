"""The files of a run: results, one JSON object a line with a checksum, which only grow, and configurations."""

import json
import math
import os
import re
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, NamedTuple

from saliency.evaluation.running.configuration import Json

_TAIL = 65536
_CHECKED = re.compile(r'(\{.*), "check": "([0-9a-f]{8})"\}', re.DOTALL)


class Result(NamedTuple):
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

    @property
    def case(self) -> tuple[str, int]:
        """The image and the class."""
        return self.image, self.target

    @property
    def key(self) -> tuple[str, int, str, str, str]:
        """The case, method and metric; a second result with the same key comes from another attempt."""
        return *self.case, self.method, self.metric, self.fingerprint

    def replaces(self, earlier: "Result | None") -> bool:
        """Which of two results counts: a score before errors, a later error before an earlier one."""
        return earlier is None or earlier.score is None or self.score is not None


def encode(result: Result) -> str:
    """The result as a line, which ends with the CRC-32 of what stands before it.

    ``ValueError`` for a number that is not finite: JSON has none.

    >>> decode(encode(Result("a", 1, "grad_cam", "pointing_game", 1.0, 0.5, None, "0"))).score
    1.0
    """
    fields = result._asdict().items()
    written = {name: value for name, value in fields if value != Result._field_defaults.get(name, ...)}
    text = json.dumps(written, ensure_ascii=False, allow_nan=False).removesuffix("}")
    return f'{text}, "check": "{_checksum(text)}"}}\n'


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def decode(line: str) -> Result:
    """The result in a line. ``ValueError`` says why a line is not a valid result.

    A line without a checksum is one of an earlier release.
    """
    checked = _CHECKED.fullmatch(line.strip())
    if checked and _checksum(checked[1]) != checked[2]:
        raise ValueError(f"line={line[:80]!r} has changed since it was written; expected a line as it was written.")
    try:
        result = Result(**json.loads(f"{checked[1]}}}" if checked else line))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"line={line[:80]!r} is not a result ({error}); expected its fields as JSON.") from error
    result = result._replace(curve=_as_tuple(result.curve), point=_as_tuple(result.point))
    wrong = [name for name, fits in _checks(result).items() if not fits]
    if wrong:
        raise ValueError(f"line={line[:80]!r} has a wrong {wrong[0]}; expected a result's fields as JSON.")
    return result


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checks(result: Result) -> dict[str, bool]:
    texts = ("image", "method", "metric", "fingerprint")
    curve, point = result.curve, result.point
    return {name: isinstance(getattr(result, name), str) for name in texts} | {
        "target": type(result.target) is int,
        "score": result.score is None or _is_number(result.score),
        "seconds": _is_number(result.seconds),
        "error": isinstance(result.error, str) if result.score is None else result.error is None,
        "difficult": isinstance(result.difficult, bool),
        "constant": isinstance(result.constant, bool),
        "curve": curve is None or (isinstance(curve, tuple) and all(map(_is_number, curve))),
        "point": point is None or (isinstance(point, tuple) and [type(value) for value in point] == [int, int]),
    }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def result_files(folder: str | Path) -> list[Path]:
    """The files of results in a folder."""
    return sorted(Path(folder).glob("rows-*.jsonl"))


def scan_results(folder: str | Path, problems: list[str] | None = None) -> Iterator[Result]:
    """Yield every result in the folder, as they stand in the files; a line still being written is skipped.

    A line may end as it does on any system. ``problems`` is given the file, number and fault of each whole line that
    is not a valid result; without it, each is a warning.
    """
    for path in result_files(folder):
        with path.open("rb") as file:
            lines = (line for part in file for line in part.splitlines(keepends=True))
            for number, line in enumerate(lines, 1):
                if not line.endswith((b"\n", b"\r")):
                    continue
                try:
                    yield decode(line.decode())
                except ValueError as error:
                    problem = f"{path}:{number}: {error}"
                    if problems is None:
                        warnings.warn(problem, stacklevel=2)
                    else:
                        problems.append(problem)


def read_results(folder: str | Path, problems: list[str] | None = None) -> Iterator[Result]:
    """Yield of the results in the folder those that count, one for each key. ``problems``: see :func:`scan_results`."""
    results: dict[tuple[str, int, str, str, str], Result] = {}
    for result in scan_results(folder, problems):
        if result.replaces(results.get(result.key)):
            results[result.key] = result
    yield from results.values()


def append_results(file: IO[bytes], results: Sequence[Result]) -> None:
    """Write the results at the end of an unbuffered file opened ``a+b``, all of them or none.

    ``OSError`` where they cannot be written, as on a full disk; a partial write is undone.
    """
    start = file.seek(0, os.SEEK_END)
    data = memoryview("".join(map(encode, results)).encode())
    try:
        while data:
            data = data[file.write(data) or 0 :]
    except BaseException as error:
        file.truncate(start)
        if isinstance(error, OSError):
            problem = f"{error.strerror}; earlier results are intact, the same command resumes"
            raise OSError(error.errno, problem, str(file.name)) from error
        raise


def cut_last_line(file: IO[bytes]) -> None:
    """Truncate a file opened ``a+b`` after its last newline: the rest is a line whose writing was interrupted."""
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


def write_file(path: Path, content: bytes, durable: bool = False) -> None:
    """Write a file that is there whole or not at all, whatever happens; ``durable``, even if the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_configurations(folder: Path, configurations: Mapping[str, Mapping[str, Json]]) -> None:
    """Write ``configs/<fingerprint>.json`` of each, with the date: of two trials of a method, the later one counts."""
    date = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    for fingerprint, configuration in configurations.items():
        path = folder / "configs" / f"{fingerprint}.json"
        text = json.dumps({**configuration, "date": date}, indent=2) + "\n"
        write_file(path, text.encode(), durable=not path.exists())
