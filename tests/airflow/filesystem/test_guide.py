"""Run the code of docs/filesystem.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.airflow.connections import Connect
from tests.support.servers import AsyncsshServer, Folder

pd = pytest.importorskip("pandas", reason="the guide needs pandas: install the extra 'dev'")

GUIDE = (Path(__file__).parents[3] / "docs" / "filesystem.md").read_text()
BLOCKS = dict(re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", GUIDE, re.DOTALL))


@pytest.mark.parametrize("section", BLOCKS)
def test_the_code_of_the_guide_runs(
    section: str, server: AsyncsshServer, folder: Folder, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    connect(server, "partner", base_path=folder.base_path)
    for name in ("inbox", "outbox"):
        (folder.path / name).mkdir()
    orders = pd.DataFrame({"amount": [1, 2], "text": ["a", "b"]})
    orders.to_csv(folder.path / "inbox" / "orders.csv", index=False)
    orders.to_parquet(folder.path / "inbox" / "orders.parquet")
    scope: dict[str, object] = {}
    exec(BLOCKS[section], scope)  # noqa: S102 - the code is our own
    if section == "pandas":
        pd.testing.assert_frame_equal(pd.read_csv(folder.path / "outbox" / "orders.csv.gz"), orders)
        assert [*pd.read_parquet(folder.path / "outbox" / "orders.parquet")] == ["amount", "text"]
    elif section == "ObjectStoragePath":
        assert scope["header"] == b"amount,text\n"
        assert "orders.csv 20" in capsys.readouterr().out
    elif section.startswith("pyarrow"):
        assert scope["rows"] == 2
        assert (folder.path / "outbox" / "all.csv").read_text() == "amount,text\n1,a\n2,b\n"
        assert (folder.path / "outbox" / "orders.csv").read_text() == "amount\n1\n2\n"
    else:
        assert (folder.path / "archive" / "orders.csv").exists()


def test_every_section_of_code_is_run() -> None:
    assert len(BLOCKS) == GUIDE.count("```python") == 4
