"""How much time and memory saliency maps take, relative to the bare passes they need and next to other libraries.

    python -m benchmarks.speed --rounds 7 --batch 8 --image 224 --threads 2 --json speed.json

Only ratios are reported, and only of runs that took turns: every candidate is timed right after its baseline, round by
round; the first round is dropped and the median of the others is shown, with the range. Where a baseline does only a
part of its work, its time is that of the whole. Peak memory is the most that
the model, the batch and what a run allocates take together, and is measured once. The candidates are in
``comparisons.py``; ``--only`` chooses from it by words of the names.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torchvision

from benchmarks.candidates import OURS, Run, Workload
from benchmarks.comparisons import COMPARISONS, Comparison


class Result:
    """What has been measured of a comparison: per candidate the ratios of all rounds, and peak memory.

    ``megabytes`` are those above the baseline's peak.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.times: dict[str, list[float]] = {}
        self.memory: dict[str, float] = {}
        self.megabytes: dict[str, float] = {}
        self.missing: set[str] = set()


def seconds(run: Run, device: torch.device) -> float:
    """Wall-clock time of a run, with all that it has started on the device."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(run: Run, device: torch.device) -> int:
    """The most bytes that a run has allocated at once, on top of what was there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    # The profiler's own events are summed up per operation: only the records behind them know the order.
    records = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return highest_sum([record.nbytes() for record in sorted(records, key=lambda record: record.start_ns())])


def resident_memory(work: Workload) -> int:
    """The bytes of the model and the batch, which are there all the time."""
    return sum(tensor.nbytes for tensor in (work.input, *work.model.parameters(), *work.model.buffers()))


def highest_sum(changes: Sequence[int]) -> int:
    """The highest running sum of allocations (positive) and releases (negative).

    >>> highest_sum([4, 6, -4, 1, -7])
    10
    """
    now = highest = 0
    for change in changes:
        now += change
        highest = max(highest, now)
    return highest


def measure(result: Result, work: Workload, rounds: int, progress: Callable[[str], None]) -> None:
    """Fill in a result, step by step, so that a partial one can be shown after an interruption."""
    comparison, device = result.comparison, work.input.device
    work = work if comparison.workload is None else comparison.workload(work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some libraries warn at every call of what they do
        try:
            baseline = comparison.baseline(work)
        except ModuleNotFoundError:
            result.missing = set(comparison.candidates)
            return
        runs = _build(result, work)
        there = resident_memory(work)
        bytes_of_baseline = there + peak_memory(baseline, device)
        for name, run in runs.items():
            bytes_of_run = there + peak_memory(run, device)
            result.memory[name] = bytes_of_run / bytes_of_baseline
            result.megabytes[name] = (bytes_of_run - bytes_of_baseline) / 1e6
        if comparison.megabytes_goal is not None:
            progress(f"{comparison.name}: measured once")
            return
        for number in range(rounds + 1):
            progress(f"{comparison.name}: " + (f"round {number} of {rounds}" if number else "warm-up"))
            for name, run in runs.items():
                base = seconds(baseline, device) / comparison.share
                ratio = seconds(run, device) / base
                if number:
                    result.times.setdefault(name, []).append(ratio)


def _build(result: Result, work: Workload) -> dict[str, Run]:
    runs = {}
    for name, candidate in result.comparison.candidates.items():
        with suppress(ModuleNotFoundError):
            runs[name] = candidate(work)
    result.missing = result.comparison.candidates.keys() - runs.keys()
    return runs


def verdict(result: Result, name: str) -> str:
    """Whether our own candidate meets the goals of its comparison."""
    comparison, times = result.comparison, result.times.get(name)
    measured = [
        (comparison.time_goal, statistics.median(times) if times else None),
        (comparison.memory_goal, result.memory.get(name)),
        (comparison.megabytes_goal, result.megabytes.get(name)),
    ]
    checked = [(goal, figure) for goal, figure in measured if goal is not None]
    if name != OURS or not checked:
        return ""
    if any(figure is None for _, figure in checked):
        return "not measured"
    return "met" if all(figure <= goal for goal, figure in checked if figure is not None) else "not met"


def shown(ratio: float) -> str:
    """A ratio with two decimals, a small one with two digits.

    >>> shown(1.046), shown(1 / 15), shown(1 / 200)
    ('1.05', '0.067', '0.005')
    """
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def table(results: Sequence[Result]) -> str:
    """A Markdown table of the measurements."""
    lines = [
        "| comparison | candidate | time (range) | peak memory | goal: time | goal: memory | |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name in result.comparison.candidates:
            limits = _limits(result.comparison) if name == OURS else ("", "")
            cells = [result.comparison.name, name, *figures(result, name), *limits, verdict(result, name)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _limits(comparison: Comparison) -> tuple[str, str]:
    time, memory = (
        "" if goal is None else f"≤ {shown(goal)}" for goal in (comparison.time_goal, comparison.memory_goal)
    )
    return time, memory if comparison.megabytes_goal is None else f"≤ +{comparison.megabytes_goal:.0f} MB"


def figures(result: Result, name: str) -> tuple[str, str]:
    """A candidate's time, with its range, and its memory, as they are shown."""
    if name in result.missing:
        return "not installed", ""
    times, in_megabytes = result.times.get(name), result.comparison.megabytes_goal is not None
    time = "" if in_megabytes else "not measured"
    if times:
        time = f"{shown(statistics.median(times))} ({shown(min(times))}–{shown(max(times))})"
    if name not in result.memory:
        return time, "not measured"
    return time, f"+{result.megabytes[name]:.0f} MB" if in_megabytes else f"{result.memory[name]:.2f}"


def as_json(results: Sequence[Result], settings: Mapping[str, Any]) -> str:
    """All ratios of all rounds, and the machine that they were measured on."""
    rows = [
        {
            "comparison": result.comparison.name,
            "candidate": name,
            "time_ratios": result.times.get(name, []),
            "memory_ratio": result.memory.get(name),
            "megabytes_above_baseline": result.megabytes.get(name),
            "installed": name not in result.missing,
            "verdict": verdict(result, name),
        }
        for result in results
        for name in result.comparison.candidates
    ]
    return json.dumps({"settings": dict(settings), "rows": rows}, indent=2)


def make_workload(network: str, layers: tuple[str, str], batch: int, image: int, device: str) -> Workload:
    """An untrained network of torchvision, random images, and targets that differ from image to image."""
    generator = torch.Generator().manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval().to(device)
    input = torch.randn(batch, 3, image, image, generator=generator).to(device)
    targets = torch.stack([torch.randperm(1000, generator=generator)[:5] for _ in range(batch)])
    return Workload(model, input, targets[:, 0].tolist(), targets, *layers)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count, after one that does not")
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--image", type=int, default=224, help="side of an image in pixels")
    parser.add_argument("--threads", type=int, default=2, help="threads on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--network", default="resnet50", help="a classification network of torchvision")
    parser.add_argument("--layer", default="layer4", help="where Grad-CAM is taken")
    parser.add_argument("--earlier", default="layer3", help="where excitation backprop is taken")
    parser.add_argument("--only", default="", metavar="WORDS", help="only comparisons with these words in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all ratios to this file")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.batch, options.image, options.threads) < 1:
        parser.error("--rounds, --batch, --image and --threads are at least 1")
    return options


def main(arguments: Sequence[str] | None = None, comparisons: Sequence[Comparison] = COMPARISONS) -> int:
    """Measure, print the table, and return the exit status: 130 after Ctrl-C."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler says on stderr when it starts and stops
    results: list[Result] = []
    status = 0
    try:
        work = make_workload(
            options.network, (options.layer, options.earlier), options.batch, options.image, options.device
        )
        for comparison in (each for each in comparisons if options.only in each.name):
            results.append(Result(comparison))
            measure(results[-1], work, options.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print("interrupted: this is the table so far", file=sys.stderr)
        status = 130
    print(table(results))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        settings |= {"torch": torch.__version__, "interrupted": bool(status)}
        options.json.write_text(as_json(results, settings) + "\n", "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
