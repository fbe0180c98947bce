"""The tables of ``docs/measured.md``, measured anew and written into the page: speed, agreement, the pointing game.

    python -m benchmarks.measured                   # some ten minutes on two idle CPU cores
    python -m benchmarks.measured --device cuda

Each device has a part of the page, between two marks, and leaves the other's as it is. A library that is not
installed is left out, and the tables say so.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

import saliency
from benchmarks import agreement, comparisons, pointing_game, speed, throughput
from benchmarks.candidates import OURS
from benchmarks.comparisons import Comparison
from saliency.cli.preparing import make_setup, run_setup

PAGE = Path(__file__).parent.parent / "docs" / "measured.md"
SHOWN = [
    *comparisons.GRAD_CAM_COMPARISONS[:3],
    *comparisons.CAM_COMPARISONS[-1:],
    *comparisons.BACKWARD_COMPARISONS[:-1],
    *comparisons.PATH_COMPARISONS[:1],
    *comparisons.ATTENTION_COMPARISONS[:2],
    *comparisons.OVERHEAD_COMPARISONS[:1],
]
LAYERS = ("layer4", "layer3")
# The networks that the package holds, and what explains them: the quick methods, and those that need attention.
RUNS = (("ResNet", "scenes", ()), ("transformer", "scenes_vit", ()), ("transformer", "scenes_vit", ("attention",)))


def machine(options: argparse.Namespace) -> str:
    """When, on what, and with which versions."""
    versions = [f"saliency {saliency.__version__}", f"Python {platform.python_version()}"]
    for name in ("torch", "torchvision", "timm", "transformers", *agreement.DISTRIBUTIONS.values()):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    place = f"{processor()}, {options.threads} threads"
    if options.device == "cuda":
        place = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {place}"
    return f"{date.today().isoformat()}. {place}, load at the start {os.getloadavg()[0]:.1f}.\n{', '.join(versions)}."


def processor() -> str:
    """The processor's name, where the system says it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def speed_table(options: argparse.Namespace, shown: Sequence[Comparison] = SHOWN) -> str:
    """Time and peak memory of each comparison, relative to its baseline."""
    work = speed.make_workload(options.network, LAYERS, options.batch, options.image, options.device)
    rows = []
    for comparison in shown:
        result = speed.Result(comparison)
        speed.measure(result, work, options.rounds, lambda line: print(line, file=sys.stderr, flush=True))
        for name in comparison.candidates:
            time, memory = speed.figures(result, name)
            rows.append((comparison.name, "saliency" if name == OURS else name, time, memory))
    head = f"{options.network}, random weights, {options.batch} images of {options.image} px"
    about = f"Medians of {options.rounds} rounds, in turns with the baseline, which is what comes after the slash"
    columns = ("what / relative to", "library", "time (range)", "peak memory")
    return f"{about}. {head}, unless a row says otherwise.\n\n{table(columns, rows)}"


def throughput_table(options: argparse.Namespace) -> str:
    """Images per second of the seven methods of TorchRay's benchmark on the embedded scenes, ours and TorchRay's."""
    arguments = pointing_game.build_parser().parse_args(benchmark_of(options))
    arguments.images, arguments.rounds = min(options.images, options.scenes), options.rounds
    try:
        rounds = throughput.measure(arguments)
    except ModuleNotFoundError as error:
        return f"Not measured: {error.name} is not installed."
    ours, theirs = (median(arguments.images / one[place] for one in rounds) for place in (0, 1))
    ratios = sorted(one.theirs / one.ours for one in rounds)
    row = (f"{ours:.1f}", f"{theirs:.1f}", f"{median(ratios):.1f} ({ratios[0]:.1f}–{ratios[-1]:.1f})")
    about = f"The seven methods of TorchRay's benchmark, on {arguments.images} embedded scenes a round, in turns."
    return f"{about}\n\n{table(('saliency, images/s', 'TorchRay, images/s', 'ratio (range)'), [row])}"


def agreement_table(options: argparse.Namespace) -> str:
    """The rows of the page for those who migrate, run with each library that is installed."""
    rows = [
        (
            f"{found.peer} {found.version}",
            *(str(found.rows[note]) for note in agreement.NOTES),
            *(f"{error:.0e}" if found.rows[note] else "" for note, error in found.errors.items()),
        )
        for found in agreement.measure()
    ]
    columns = ("library", "equal", "scaled", "other draws", "differ", "largest error, equal", "scaled to [0, 1]")
    about = "How many rows of [migrating](migrating.md) give the same as the library, on the CPU, and how nearly."
    return f"{about}\n\n{table(columns, rows)}"


def pointing_table(options: argparse.Namespace) -> str:
    """The share of cases whose map has its maximum on the object, or within 15 pixels of it."""
    shares: dict[str, dict[str, float]] = {}
    for title, arch, methods in RUNS:
        chosen = [f"--method={name}" for name in options.method or methods]
        with tempfile.TemporaryDirectory() as folder:
            more = ["--arch", arch, "--metric", "pointing_game", "--gallery", "0", "--out", folder, *chosen]
            outcome = run_setup(make_setup(pointing_game.build_parser().parse_args([*benchmark_of(options), *more])))
        for line in outcome.lines:
            shares.setdefault(line.method, {})[title] = 100 * (line.mean or 0)
    titles = dict.fromkeys(title for title, _, _ in RUNS)
    rows = [
        (f"`{name}`", *(f"{own[title]:.1f}" if title in own else "" for title in titles))
        for name, own in sorted(shares.items(), key=lambda one: -max(one[1].values()))
    ]
    about = f"The maximum is on the object, or within 15 pixels of it: {options.scenes} embedded scenes."
    return f"{about}\n\n{table(('method', *(f'{title}, %' for title in titles)), rows)}"


PARTS: dict[str, Callable[[argparse.Namespace], str]] = {
    "Speed": speed_table,
    "Throughput": throughput_table,
    "Agreement": agreement_table,
    "The pointing game": pointing_table,
}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(table(("a", "b"), [("1", "2")]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def replace(page: str, device: str, text: str) -> str:
    """The page with another text between the marks of a device. ``ValueError`` where it does not have them.

    >>> replace("a <!-- measured: cpu --> b <!-- end: cpu --> c", "cpu", "new")
    'a <!-- measured: cpu -->\\n\\nnew\\n\\n<!-- end: cpu --> c'
    """
    start, end = f"<!-- measured: {device} -->", f"<!-- end: {device} -->"
    if start not in page or end not in page:
        raise ValueError(f"page={page[:20]!r}... has no part for {device}; expected {start} and {end} in it.")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def benchmark_of(options: argparse.Namespace) -> list[str]:
    """The arguments of ``saliency benchmark`` that the parts have in common."""
    return [f"--{name}={getattr(options, name)}" for name in ("device", "threads", "scenes")]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measured", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--page", type=Path, default=PAGE, help="what is written to (docs/measured.md)")
    for name, default, about in (
        *(("threads", 2, "threads on the CPU"), ("rounds", 5, "rounds that count"), ("batch", 4, "images at once")),
        *(("image", 224, "side of an image"), ("scenes", 200, "scenes of the pointing game")),
        ("images", 12, "scenes of a round of the throughput"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{about} ({default})")
    parser.add_argument("--network", default="resnet50", help="of torchvision, with layer3 and layer4 (resnet50)")
    parser.add_argument("--method", action="append", help="in the pointing game; repeatable (the quick ones)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the page."""
    options = parse(argv)
    page = options.page.read_text("utf-8")
    replace(page, options.device, "")  # a page without marks is found out before the first measurement
    torch.set_num_threads(options.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler says on stderr when it starts and stops
    parts = [machine(options)]
    for name, part in PARTS.items():
        print(name, file=sys.stderr, flush=True)
        parts.append(f"**{name}.** {part(options)}")
    options.page.write_text(replace(page, options.device, "\n\n".join(parts)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
