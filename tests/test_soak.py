"""A short soak run has faults and loses no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.soak import __main__ as soak
from tests.support.soak.__main__ import BEGIN, END, Options


@pytest.mark.system
@pytest.mark.timeout(400)
def test_a_short_run_has_faults_and_no_problems(tmp_path: Path, sshd: str) -> None:
    options = Options(
        minutes=0.25, gibibytes=0.05, processes=2, seed=1, seconds_between_faults=1.0, restart_seconds=7.0
    )  # fmt: skip
    result = soak.run(options, tmp_path)
    assert result.problems == []
    assert len(result.reports) == 2
    assert result.faults.total() > 0
    assert result.compared > 0
    text = soak.summary(result)
    assert "| files compared at the end |" in text
    assert "seed 1" in text


def test_the_page_takes_the_summary_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(soak, "PAGE", page)
    for text in ("first", "second"):
        soak.write_page(text)
        assert page.read_text() == f"before\n{BEGIN}\n\n{text}\n\n{END}\nafter\n"


def test_a_lost_a_wrong_and_an_unknown_file_are_problems(tmp_path: Path) -> None:
    pool, folder = tmp_path / "pool", tmp_path / "folder"
    pool.write_bytes(bytes(range(200)))
    folder.mkdir()
    for name, content in (("right", bytes(range(10, 15))), ("wrong", b"x"), ("unknown", b"y"), ("moved", b"z")):
        (folder / name).write_bytes(content)
    report = {
        "files": {
            "right": [[0, 3], [10, 5]], "wrong": [[0, 1]], "lost": [[0, 1]], "may be gone": [None, [0, 1]],
            "moved": [None, [9, 1], [122, 1]],
        },
        "moves": [["lost", "moved", 0, 1], ["source", "moved", 122, 1]],
    }  # fmt: skip
    compared, temps, problems = soak.compare(report, folder, pool)
    assert (compared, temps) == (5, 0)
    assert [problem.split()[0] for problem in problems] == ["unknown", "wrong", "lost", "the"]
    assert "lost to moved" in problems[-1]


def test_growth_is_a_problem_and_noise_is_none() -> None:
    flat = [[float(second), 10, 3, 100 << 20] for second in range(20)]
    assert soak.growth_problems({"samples": flat}) == []
    grown = [[second, 10 + second, 3, 100 << 20] for second in range(20)]
    (problem,) = soak.growth_problems({"samples": grown})
    assert problem.startswith("descriptors grew from")
