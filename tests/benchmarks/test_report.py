"""The command that writes a report."""

import pytest

from benchmarks.report import main
from saliency.evaluation.running.store import Result
from tests.evaluation.report.made_run import make_config, write_run


def test_the_files_are_written_and_named(tmp_path, capsys):
    rows = [Result(f"photo{number}", 0, "cam", "pointing_game", 1.0, 0.1, None, "a") for number in range(3)]
    write_run(tmp_path / "run", rows, {"a": make_config("pointing_game", "cam")})
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    names = ["cases.csv", "summary.csv", "report.md", "report.html"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / name) for name in names]
    assert main([str(tmp_path / "run")]) == 0
    assert all((folder / name).is_file() for folder in (tmp_path / "out", tmp_path / "run") for name in names)


def test_a_folder_without_a_run_is_a_mistake_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        main([str(tmp_path)])
    assert refused.value.code == 2
    assert "holds no rows" in capsys.readouterr().err.splitlines()[-1]
