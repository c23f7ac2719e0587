"""The demo reports failures, and leaves only its log."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest

from demo import __main__ as demo

FAILING = """
from airflow.sdk import DAG, task

with DAG(dag_id="partner_exchange") as dag:
    @task
    def send_orders():
        raise RuntimeError("the demo's own failure")

    send_orders()
"""


def _temporary() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("sftp-demo-*"))


@pytest.mark.timeout(180)
def test_a_failing_task_fails_the_demo_and_its_log_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = tmp_path / "example_dags"
    shutil.copytree(demo.EXAMPLES, examples)
    (examples / "partner_exchange.py").write_text(FAILING)
    shutil.copytree(demo.EXAMPLES.parent / "demo", tmp_path / "demo")
    monkeypatch.setattr(demo, "EXAMPLES", examples)
    before = _temporary()
    assert demo.main() == 1
    output = capsys.readouterr().out
    assert "Failed: DAG partner_exchange: send_orders" in output
    assert "the demo's own failure" in output
    (log,) = _temporary() - before
    assert re.sub(r"\s", "", str(log)) in re.sub(r"\s", "", output)
    assert "the demo's own failure" in log.read_text()
    log.unlink()


@pytest.mark.timeout(180)
def test_the_demo_checks_the_effects_of_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo fails if an example does not clear the outbox."""
    examples = tmp_path / "example_dags"
    shutil.copytree(demo.EXAMPLES, examples)
    dag = (examples / "partner_exchange.py").read_text()
    (examples / "partner_exchange.py").write_text(dag.replace('path="outbox/")', 'pattern="outbox/*.bin")'))
    shutil.copytree(demo.EXAMPLES.parent / "demo", tmp_path / "demo")
    monkeypatch.setattr(demo, "EXAMPLES", examples)
    before = _temporary()
    assert demo.main() == 1
    assert "Failed: the server holds" in capsys.readouterr().out
    for log in _temporary() - before:
        log.unlink()
