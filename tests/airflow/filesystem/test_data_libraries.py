"""Read and write CSV and Parquet with pandas, pyarrow, DuckDB and polars."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb", reason="the libraries are not installed: install the extra 'dev'")

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend.filesystem import SFTPBackendFileSystem
from tests.support.airflow.connections import Connect
from tests.support.servers import AsyncsshServer, Folder
from tests.support.servers.relay import CountingRelay

ROWS = 20_000
TABLE = pa.table({"number": list(range(ROWS)), "text": [f"row {number}" for number in range(ROWS)]})


@pytest.fixture
def url(server: AsyncsshServer, folder: Folder, connect: Connect) -> str:
    """The URL of the folder."""
    return f"sftpbackend://{connect(server, 'partner', base_path=folder.base_path)}@"


@pytest.fixture
def parquet(folder: Folder) -> Path:
    """A Parquet file on the server, of several row groups."""
    pq.write_table(TABLE, folder.path / "table.parquet", row_group_size=3000)
    return folder.path / "table.parquet"


class Unprintable:
    """Ends the writer that prints it."""

    def __str__(self) -> str:
        raise RuntimeError("unprintable")


# -- pandas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz", "new/table.csv.zip"])
def test_pandas_reads_and_writes_csv_by_url(url: str, folder: Folder, name: str) -> None:
    frame = TABLE.to_pandas()
    frame.to_csv(f"{url}/{name}", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(folder.path / name), frame)
    pd.testing.assert_frame_equal(pd.read_csv(f"{url}/{name}"), frame)
    chunks = pd.read_csv(f"{url}/{name}", chunksize=6000)
    assert [len(chunk) for chunk in chunks] == [6000, 6000, 6000, 2000]


def test_pandas_reads_and_writes_parquet_by_url(url: str, parquet: Path, folder: Folder) -> None:
    frame = TABLE.to_pandas()
    pd.testing.assert_frame_equal(pd.read_parquet(f"{url}/table.parquet"), frame)
    assert [*pd.read_parquet(f"{url}/table.parquet", columns=["number"])] == ["number"]
    frame.to_parquet(f"{url}/written.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(folder.path / "written.parquet"), frame)


def test_a_failure_of_pandas_leaves_the_old_file(url: str, folder: Folder) -> None:
    (folder.path / "table.csv").write_text("old")
    with pytest.raises(RuntimeError, match="unprintable"):
        pd.DataFrame({"a": ["x"] * 1000 + [Unprintable()]}).to_csv(f"{url}/table.csv")
    assert (folder.path / "table.csv").read_text() == "old"
    with pytest.raises(FileNotFoundError, match=r"missing\.csv"):
        pd.read_csv(f"{url}/missing.csv")


# -- pyarrow ----------------------------------------------------------------------------------------------------------


def test_pyarrow_reads_and_writes_parquet(fs: SFTPBackendFileSystem, parquet: Path, folder: Folder) -> None:
    assert pq.read_table("table.parquet", filesystem=fs).equals(TABLE)
    pq.write_table(TABLE, "written.parquet", filesystem=fs)
    assert pq.read_table(folder.path / "written.parquet").equals(TABLE)
    with fs.open("table.csv", "wb") as file:
        pa.csv.write_csv(TABLE, file)
    with fs.open("table.csv") as file:
        assert pa.csv.read_csv(file).equals(TABLE)


def test_pyarrow_reads_and_writes_datasets(fs: SFTPBackendFileSystem) -> None:
    pa.dataset.write_dataset(
        TABLE, "/set", filesystem=fs, format="parquet", max_rows_per_file=6000, max_rows_per_group=3000
    )
    assert len(fs.find("set")) == 4
    dataset = pa.dataset.dataset("/set", filesystem=fs)
    assert dataset.to_table().sort_by("number").equals(TABLE)
    assert dataset.count_rows(filter=pa.dataset.field("number") >= 19_990) == 10


def test_a_failure_of_pyarrow_leaves_the_old_file(fs: SFTPBackendFileSystem, parquet: Path) -> None:
    old = parquet.read_bytes()
    with pytest.raises(KeyError), pq.ParquetWriter("table.parquet", TABLE.schema, filesystem=fs) as writer:
        writer.write_table(TABLE)
        raise KeyError
    assert parquet.read_bytes() == old
    with pytest.raises(FileNotFoundError):
        pq.read_table("missing.parquet", filesystem=fs)


def test_parquet_that_is_replaced_while_it_is_read_is_one_version(fs: SFTPBackendFileSystem, parquet: Path) -> None:
    with fs.open("table.parquet") as file:
        source = pq.ParquetFile(file)
        tables = [source.read_row_group(0)]
        pq.write_table(TABLE.slice(0, 10), "table.parquet", filesystem=fs)
        tables += [source.read_row_group(number) for number in range(1, source.num_row_groups)]
    assert pa.concat_tables(tables).equals(TABLE)
    assert pq.read_table("table.parquet", filesystem=fs).num_rows == 10


@pytest.fixture
def relayed(
    make_backend: Callable[..., SFTPBackend], server: AsyncsshServer, folder: Folder
) -> Iterator[tuple[SFTPBackendFileSystem, CountingRelay]]:
    """A file system whose received bytes are counted."""
    with contextlib.closing(CountingRelay(server.port)) as relay:
        backend = make_backend(server, port=relay.port, base_path=folder.base_path, host_key_policy="auto")
        yield SFTPBackendFileSystem(backend=backend), relay


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(32 << 20, id="32M"),
        pytest.param(256 << 20, marks=[pytest.mark.system, pytest.mark.timeout(300)], id="256M"),
    ],
)
def test_two_columns_of_twenty_cost_less_than_a_fifth(
    relayed: tuple[SFTPBackendFileSystem, CountingRelay], folder: Folder, size: int
) -> None:
    rows = size // 20 // 8
    columns = {f"c{number}": pa.py_buffer(random.Random(number).randbytes(rows * 8)) for number in range(20)}
    table = pa.table({name: pa.Array.from_buffers(pa.int64(), rows, [None, data]) for name, data in columns.items()})
    path = folder.path / "wide.parquet"
    pq.write_table(table, path, row_group_size=rows // 10, use_dictionary=False, compression="none")
    fs, relay = relayed
    for read in (
        lambda: pq.read_table("wide.parquet", filesystem=fs, columns=["c3", "c17"]),
        lambda: pq.read_table("wide.parquet", filesystem=fs, columns=["c3", "c17"], pre_buffer=False),
        lambda: pa.dataset.dataset("/wide.parquet", filesystem=fs).to_table(["c3", "c17"]),
        lambda: pl.read_parquet(fs.open("wide.parquet"), columns=["c3", "c17"], use_pyarrow=True).to_arrow(),
    ):
        before = relay.received
        assert read()["c17"].combine_chunks().equals(table["c17"].combine_chunks())
        assert relay.received - before < 0.2 * path.stat().st_size


# -- DuckDB -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def duck(fs: SFTPBackendFileSystem) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with the file system."""
    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        yield connection


def test_duckdb_reads_and_writes(duck: duckdb.DuckDBPyConnection, parquet: Path, folder: Folder) -> None:
    count = "SELECT count(*), sum(number), max(text) FROM"
    expected = (ROWS, ROWS * (ROWS - 1) // 2, "row 9999")
    assert duck.sql(f"{count} 'sftpbackend:///table.parquet'").fetchall() == [expected]
    for name in ("written.parquet", "written.csv"):
        duck.sql("FROM 'sftpbackend:///table.parquet'").to_view("source", replace=True)
        duck.sql(f"COPY source TO 'sftpbackend:///{name}'")
        assert duck.sql(f"{count} '{folder.path / name}'").fetchall() == [expected]
    assert duck.sql(f"{count} 'sftpbackend:///writ*.csv'").fetchall() == [expected]


def test_duckdb_reads_with_several_threads(duck: duckdb.DuckDBPyConnection, folder: Folder) -> None:
    for number in range(8):
        pq.write_table(TABLE, folder.path / f"part-{number}.parquet", row_group_size=2000)
    duck.sql("SET threads = 8")
    rows = duck.sql("SELECT number, count(*) FROM 'sftpbackend:///part-*.parquet' GROUP BY number").fetchall()
    assert sorted(rows) == [(number, 8) for number in range(ROWS)]


def test_a_failure_of_duckdb_writes_nothing(duck: duckdb.DuckDBPyConnection, fs: SFTPBackendFileSystem) -> None:
    fs.pipe("kept.csv", b"old")
    duck.sql(
        "CREATE VIEW failing AS SELECT CASE WHEN i = 900000 THEN error('stop') ELSE i END FROM range(1000000) t(i)"
    )
    for name in ("kept.csv", "new.csv"):
        with pytest.raises(duckdb.Error, match="stop"):
            duck.sql(f"COPY failing TO 'sftpbackend:///{name}'")
    assert fs.ls("", detail=False) == ["/kept.csv"]
    assert fs.cat("kept.csv") == b"old"


# -- polars -----------------------------------------------------------------------------------------------------------


def test_polars_reads_and_writes_open_files(fs: SFTPBackendFileSystem, parquet: Path) -> None:
    frame = pl.from_arrow(TABLE)
    assert isinstance(frame, pl.DataFrame)
    writers: dict[str, tuple[Callable[[Any], object], Callable[[Any], pl.DataFrame]]] = {
        "written.parquet": (frame.write_parquet, pl.read_parquet),
        "written.csv": (frame.write_csv, pl.read_csv),
    }
    for name, (write, read) in writers.items():
        with fs.open(name, "wb") as file:
            write(file)
        with fs.open(name) as file:
            assert read(file).equals(frame)
    with fs.open("table.parquet") as file:
        assert pl.read_parquet(file, columns=["text"]).equals(frame.select("text"))
