"""Runs whose processes are killed, interrupted or short of disk: nothing is lost, and what comes after is the same."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path

import pytest

from benchmarks.pointing_game import main
from saliency.evaluation.running.store import read_results, result_files, scan_results

REPOSITORY = Path(__file__).parent.parent.parent
# The embedded network, slowed down: there is time to end it while it runs.
NETWORK = """
import os, time
from saliency.networks.models import preprocessing
from saliency.scenes import scene_network

def wait(module, inputs):
    time.sleep(float(os.environ.get("WAIT", "0")))

def build():
    network = scene_network()
    network.register_forward_pre_hook(wait)
    return network, preprocessing("scenes")
"""
METHODS = ("gradient", "excitation_backprop", "centre")
METRICS = ("pointing_game", "energy_pointing_game")
SCENES = 24
DEADLINE = 120  # seconds, for what takes two

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes as Linux shows them")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "slow_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("slow_network", None)


def arguments(out):
    named = [f"--method={name}" for name in METHODS] + [f"--metric={name}" for name in METRICS]
    network = ["--import=slow_network:build", "--device=cpu", "--threads=1"]
    return [*network, f"--scenes={SCENES}", "--batch-size=2", "--gallery=2", f"--out={out}", *named]


@contextmanager
def started(out, ranks=0, wait=0.15, **options):
    """A run in processes of its own; with ranks, under torchrun."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks else []
    environment = {**os.environ, "WAIT": str(wait), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", *torchrun, "benchmarks.pointing_game", *arguments(out)]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        for one in [*workers_of(process.pid), process.pid]:
            kill(one)
        process.communicate()


def workers_of(pid):
    """The processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until(condition):
    """Wait until something is so."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def lines(out):
    return sum(path.read_bytes().count(b"\n") for path in result_files(out))


def scores(out):
    return {row.key: (row.score, row.curve, row.point, row.difficult) for row in read_results(out)}


def table_of(printed):
    """The table; behind it stands where the results are."""
    return [line for line in printed.splitlines() if line.startswith("|")]


def is_partial(out, whole):
    return 0 < len(scores(out)) < len(whole)


@pytest.fixture
def whole(folder):
    """The scores of an undisturbed run."""
    assert main(arguments("whole")) == 0
    found = scores("whole")
    assert len(found) == lines("whole")
    assert {key[2] for key in found} == set(METHODS)
    return found


def assert_same(out, whole):
    """Every case is there once, and bit for bit as if nothing had happened."""
    assert scores(out) == whole
    assert Counter(map(attrgetter("key"), scan_results(out))).most_common(1)[0][1] == 1


@pytest.mark.slow
def test_killed_with_three_processes_then_with_two_and_finished_by_one(folder, whole, capsys):
    for ranks, more in ((3, 30), (2, 30)):
        before = lines("out")
        with started("out", ranks) as process:
            until(lambda before=before, more=more: lines("out") >= before + more)
            workers = workers_of(process.pid)
            assert len(workers) == ranks
            for pid in [process.pid, *workers]:
                kill(pid)
            until(lambda workers=workers: not any(map(is_running, workers)))
        assert is_partial("out", whole)
    with result_files("out")[0].open("ab") as file:  # a line that was cut while it was written
        file.write(b'{"image": "scene1", "tar')
    assert len(result_files("out")) == 3
    capsys.readouterr()
    assert main(arguments("out")) == 0
    assert_same("out", whole)
    table = table_of(capsys.readouterr().out)
    assert main(arguments("whole")) == 0
    assert table_of(capsys.readouterr().out) == table


@pytest.mark.slow
def test_undisturbed_with_three_processes_as_with_one(folder, whole, capsys):
    capsys.readouterr()
    assert main(arguments("whole")) == 0
    table = table_of(capsys.readouterr().out)
    with started("out", 3, wait=0.05) as process:
        printed, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
    assert table_of(printed) == table
    assert_same("out", whole)
    assert all(path.stat().st_size for path in result_files("out"))
    assert len(result_files("out")) == 3


@pytest.mark.slow
def test_one_killed_rank_ends_the_others_and_a_killed_torchrun_leaves_none(folder, whole):
    for victim in ("rank", "torchrun"):
        before = lines("out")
        with started("out", 2) as process:
            until(lambda before=before: lines("out") >= before + 12)
            workers = workers_of(process.pid)
            kill(workers[1] if victim == "rank" else process.pid)
            process.wait(DEADLINE)
            assert process.returncode != 0
            until(lambda workers=workers: not any(map(is_running, workers)))
    assert is_partial("out", whole)
    assert main(arguments("out")) == 0
    assert_same("out", whole)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_in_one_line(folder, whole, capsys):
    with started("out") as process:
        until(lambda: lines("out"))
        process.send_signal(signal.SIGSTOP)
        capsys.readouterr()
        assert main(arguments("out")) == 2
        refused = capsys.readouterr()
        with started("out", 2) as second:
            printed, said = second.communicate(timeout=DEADLINE)
            assert second.returncode != 0
        assert is_partial("out", whole)
    assert (refused.out, printed) == ("", "")
    assert refused.err.count("\n") == 1
    assert said.count("pointing_game: error: out='out' is in use") == 1
    assert "pointing_game: error: out='out' is in use" in refused.err
    assert main(arguments("out")) == 0
    assert_same("out", whole)


@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 0), pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow)],
)
def test_an_interrupt_prints_the_table_so_far(folder, whole, number, ranks):
    with started("out", ranks) as process:
        until(lambda: lines("out") >= 20)
        process.send_signal(number)
        printed, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 or ranks  # torchrun has a code, and a traceback, of its own
    assert "Traceback" not in said or ranks
    for method in METHODS:
        assert printed.count(f"| pointing_game | {method} |") == 1
    found = scores("out")
    assert 0 < len(found) < len(whole)
    assert f"{len(whole) - len(found)} results are missing" in printed
    assert main(arguments("out")) == 0
    assert_same("out", whole)


def test_a_full_disk_ends_the_run_with_whole_rows_and_a_clear_message(folder, whole):
    room = 9_000  # bytes in a file, more than any of the configurations has
    with started("out", wait=0, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))) as process:
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert said.count("\n") == 1
    assert said.startswith("pointing_game: error: ")
    assert "File too large; earlier results are intact, the same command resumes: 'out/rows-0.jsonl'" in said
    (path,) = result_files("out")
    assert 0 < path.stat().st_size <= room
    assert path.read_bytes().endswith(b"\n")
    found = scores("out")
    assert found.items() <= whole.items()
    assert main(arguments("out")) == 0
    assert_same("out", whole)
