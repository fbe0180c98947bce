"""The benchmark's arithmetic on given numbers, and that it runs; how fast anything is, is not tested."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from benchmarks import candidates, comparisons, speed
from benchmarks.candidates import OURS
from benchmarks.comparisons import Comparison
from benchmarks.speed import Result


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def result(times=(), memory=None, time_goal=None, memory_goal=None, megabytes=None, megabytes_goal=None):
    made = Result(Comparison("a / b", None, {OURS: None}, time_goal, memory_goal, megabytes_goal=megabytes_goal))
    made.times[OURS] = list(times)
    if memory is not None:
        made.memory[OURS] = memory
    if megabytes is not None:
        made.megabytes[OURS] = megabytes
    return made


class TestArithmetic:
    @pytest.mark.parametrize(
        ("changes", "highest"),
        [([], 0), ([5], 5), ([5, -5, 3], 5), ([2, 3, -4, 6, -7], 7), ([-8, 3], 0)],
    )
    def test_highest_sum(self, changes, highest):
        assert speed.highest_sum(changes) == highest

    def test_peak_memory_counts_what_lives_at_the_same_time(self):
        def one_after_the_other():
            for _ in range(3):
                torch.empty(1000, dtype=torch.float64)

        def at_once():
            return [torch.empty(1000, dtype=torch.float64) for _ in range(3)]

        cpu = torch.device("cpu")
        assert speed.peak_memory(one_after_the_other, cpu) == 8000
        assert speed.peak_memory(at_once, cpu) == 24000

    def test_times_are_ratios_to_the_baseline_run_just_before_and_the_warm_up_is_dropped(self, monkeypatch):
        clock = Clock(monkeypatch)
        baseline, candidate = clock.lasting(50, 2, 4, 8), clock.lasting(50, 3, 4, 4)
        comparison = Comparison("a / b", lambda work: baseline, {OURS: lambda work: candidate})
        measured = Result(comparison)
        speed.measure(measured, work(), 3, lambda line: None)
        assert measured.times == {OURS: [1.5, 1.0, 0.5]}

    def test_the_time_of_a_baseline_that_does_a_share_of_its_work_is_that_of_the_whole(self, monkeypatch):
        clock = Clock(monkeypatch)
        baseline, candidate = clock.lasting(50, 2, 4, 8), clock.lasting(50, 3, 4, 4)
        comparison = Comparison("a / b", lambda work: baseline, {OURS: lambda work: candidate}, share=1 / 64)
        measured = Result(comparison)
        speed.measure(measured, work(), 3, lambda line: None)
        assert measured.times == {OURS: [1.5 / 64, 1 / 64, 0.5 / 64]}

    def test_a_goal_in_megabytes_is_above_the_baseline_and_time_is_not_taken(self):
        def allocating(megabytes):
            return lambda work: lambda: torch.empty(megabytes * 250_000)

        measured, lines = Result(Comparison("a / b", allocating(3), {OURS: allocating(5)}, megabytes_goal=2)), []
        speed.measure(measured, work(), 3, lines.append)
        assert measured.megabytes == {OURS: 2.0}
        assert not measured.times
        assert len(lines) == 1
        assert speed.verdict(measured, OURS) == "met"
        assert speed.table([measured]).endswith(f"| a / b | {OURS} |  | +2 MB |  | ≤ +2 MB | met |")

    @pytest.mark.parametrize(("megabytes", "verdict"), [(150.1, "not met"), (149.9, "met"), (None, "not measured")])
    def test_verdict_on_megabytes(self, megabytes, verdict):
        assert speed.verdict(result(megabytes=megabytes, megabytes_goal=150), OURS) == verdict

    @pytest.mark.parametrize(
        ("times", "verdict"), [([0.06, 0.06, 0.9], "met"), ([0.07, 0.07, 0.01], "not met"), ([1 / 15], "met")]
    )
    def test_so_many_times_faster(self, times, verdict):
        made = result(times, 1.0, comparisons.times_faster(15))
        assert speed.verdict(made, OURS) == verdict
        assert "| ≤ 0.067 |" in speed.table([made])

    @pytest.mark.parametrize(
        ("times", "memory", "time_goal", "memory_goal", "verdict"),
        [
            ([1.0, 9.0, 1.1], 1.0, 1.1, None, "met"),
            ([1.0, 1.3, 1.2], 1.0, 1.1, None, "not met"),
            ([1.0], 1.2, 1.1, 1.05, "not met"),
            ([1.0], 1.05, 1.1, 1.05, "met"),
            ([2.0], 1.06, None, 1.05, "not met"),
            ([2.0], 2.0, None, None, ""),
            ([], None, 1.1, 1.05, "not measured"),
            ([], 1.0, 1.1, None, "not measured"),
        ],
    )
    def test_verdict(self, times, memory, time_goal, memory_goal, verdict):
        assert speed.verdict(result(times, memory, time_goal, memory_goal), OURS) == verdict

    def test_table_shows_median_range_and_goals(self):
        line = speed.table([result([1.25, 1.0, 3.0], 1.5, 1.5, 1.05)]).splitlines()[-1]
        assert line == f"| a / b | {OURS} | 1.25 (1.00–3.00) | 1.50 | ≤ 1.50 | ≤ 1.05 | not met |"


@dataclass
class Clock:
    """Time that only passes while a run lasts, as long as it was told to."""

    monkeypatch: pytest.MonkeyPatch
    now: float = field(default=0.0)

    def __post_init__(self):
        self.monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)
        self.monkeypatch.setattr(speed, "peak_memory", lambda run, device: 1)

    def lasting(self, *durations):
        left = iter(durations)

        def run():
            self.now += next(left)

        return run


def work():
    torch.manual_seed(0)
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), pool, torch.nn.Linear(4, 6))
    targets = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]])
    return candidates.Workload(model.eval(), torch.randn(2, 3, 32, 32), [0, 5], targets, "1", "0")


@pytest.mark.parametrize("comparison", comparisons.COMPARISONS, ids=lambda comparison: comparison.name)
def test_every_comparison_runs(comparison):
    measured, lines = Result(comparison), []
    speed.measure(measured, work(), 2, lines.append)
    if measured.missing == set(comparison.candidates):
        pytest.skip("the library of the baseline is not installed")
    assert OURS not in measured.missing
    assert set(measured.memory) | measured.missing == set(comparison.candidates)
    if comparison.megabytes_goal is not None:
        assert not measured.times
        return
    assert set(measured.times) | measured.missing == set(comparison.candidates)
    assert all(len(ratios) == 2 and min(ratios) > 0 for ratios in measured.times.values())
    assert all(measured.memory[name] > 0 for name in measured.times)
    assert len(lines) == 3


def test_a_baseline_that_is_not_installed_leaves_its_comparison_out():
    def absent(work):
        raise ModuleNotFoundError("No module named 'torchray'")

    measured = Result(Comparison("peer / peer", absent, {"TorchRay": absent}))
    speed.measure(measured, work(), 2, lambda line: None)
    assert measured.missing == {"TorchRay"}
    assert "not installed" in speed.table([measured]).splitlines()[-1]


class TestCommand:
    ARGUMENTS = ("--rounds=1", "--batch=1", "--image=32", "--threads=1", "--network=resnet18")

    def not_installed(self, work):
        raise ModuleNotFoundError("No module named 'torchray'")

    def stopped(self, work):
        raise KeyboardInterrupt

    def test_prints_a_table_and_writes_every_ratio(self, tmp_path, capsys):
        both = {OURS: candidates.once(candidates.our_grad_cam), "TorchRay": self.not_installed}
        comparison = Comparison("Grad-CAM / forward pass", candidates.forward, both, time_goal=1e9)
        file = tmp_path / "speed.json"
        assert speed.main([*self.ARGUMENTS, f"--json={file}"], [comparison]) == 0
        printed = capsys.readouterr()
        head, _, ours, torchray = printed.out.splitlines()
        assert head.startswith("| comparison | candidate |")
        assert ours.endswith("| met |")
        assert "| TorchRay | not installed |" in torchray
        assert "round 1 of 1" in printed.err
        written = json.loads(file.read_text("utf-8"))
        assert written["settings"]["network"] == "resnet18"
        assert [len(row["time_ratios"]) for row in written["rows"]] == [1, 0]
        assert [row["installed"] for row in written["rows"]] == [True, False]

    def test_prints_the_table_so_far_when_it_is_stopped(self, capsys):
        ours = {OURS: candidates.once(candidates.our_gradient)}
        three = [
            Comparison("first", candidates.forward, ours, time_goal=1e9),
            Comparison("second", self.stopped, ours, time_goal=1e9),
            Comparison("third", candidates.forward, ours),
        ]
        assert speed.main(self.ARGUMENTS, three) == 130
        printed = capsys.readouterr()
        first, second = printed.out.splitlines()[2:]
        assert first.endswith("| met |")
        assert second == f"| second | {OURS} | not measured | not measured | ≤ 1000000000.00 |  | not measured |"
        assert "interrupted" in printed.err

    def test_rejects_what_cannot_be_measured(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            speed.main(["--rounds=0"])
        assert "at least 1" in capsys.readouterr().err
