"""Names are literal even if they contain wildcards; only patterns match."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, BaseOperator, ObjectStoragePath
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_sftp_backend import FileInfo, NotFound
from airflow_sftp_backend.backend._paths import has_control_character, is_temp_name
from airflow_sftp_backend.operators import (
    SFTPDeleteOperator,
    SFTPDownloadOperator,
    SFTPMoveOperator,
    SFTPUploadOperator,
)
from airflow_sftp_backend.sensors import SFTPFileSensor
from tests.support.airflow.arguments import Glob
from tests.support.airflow.context import State, context
from tests.support.airflow.operators import Row, delete, download, move, run, upload
from tests.support.airflow.supervised_task import run as run_supervised
from tests.support.airflow.versions import AirflowFailException, needs_literal
from tests.support.files import read_files, write_files

NASTY = (
    "report[1].csv", "a*b", "?", "*", "**", "[!a]", "[]", "[a", "]", "{name}", "{date}", "{{ x }}", "None", "['a']",
    '[{"path": "a"}]', "1_000", "a#", "a?b", "é🎉", " a ", "%2e%2e", "-rf", "'", '"', "\\*", "~", "$HOME", "&<>;",
)  # fmt: skip


def is_listed(name: str) -> bool:
    """Return whether a listing returns the name to a task."""
    if name in ("", ".", "..") or "/" in name or has_control_character(name) or ".." in name.split("\\"):
        return False
    return len(name.encode()) <= 200 and not is_temp_name(name)


LETTERS = st.characters(codec="utf-8", min_codepoint=0x20) | st.sampled_from("*?[]!-{}#%\\'\" .1")
NAMES = st.text(LETTERS, min_size=1, max_size=12).filter(is_listed)


def matched_by(name: str) -> list[str]:
    """Return names that the name would match or almost match."""
    literal = re.sub(r"\[(!?)([^\]]+)\]", lambda found: "q" if found[1] else found[2][0], name)
    others = [literal.replace("*", star).replace("?", "x") for star in ("", "x", "yy")]
    others += [f"{name}x", f"x{name}", name.replace("[", "").replace("]", ""), "report1.csv"]
    return [other for other in dict.fromkeys(others) if other != name and is_listed(other)]


def rows_of(operator: BaseOperator, **options: Any) -> list[Row]:
    """Return the result of the task as the next task receives it."""
    return cast("list[Row]", json.loads(json.dumps(run(operator, **options))))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example has a folder of its own
@given(NAMES)
@example("report[1].csv")
@example("**")
@example("é[🎉-x]*?")
def test_only_the_file_of_a_row_is_touched(remote: Path, tmp_path: Path, name: str) -> None:
    case = f"case-{len(list(remote.iterdir()))}"
    others = dict.fromkeys(matched_by(name), b"other")
    for folder in (remote / case / "in", remote / case / "out", tmp_path / case):
        write_files(folder, others)
    (remote / case / "in" / name).write_bytes(b"meant")
    found = SFTPFileSensor(task_id="wait", path=f"{case}/in/", exclude=None).execute(context())
    rows = [row for row in json.loads(json.dumps(found)) if row["path"] == f"{case}/in/{name}"]
    assert len(rows) == 1
    assert len(found) == len(others) + 1
    moved = rows_of(move(rows, f"{case}/out/"))
    assert read_files(remote / case / "in") == others
    assert read_files(remote / case / "out") == {**others, name: b"meant"}
    fetched = rows_of(download(moved, f"{tmp_path}/{case}/"))
    assert read_files(tmp_path / case) == {**others, name: b"meant"}
    sent = rows_of(upload(fetched, f"{case}/sent/"))
    assert read_files(remote / case / "sent") == {name: b"meant"}
    assert [row["path"] for row in rows_of(delete(moved + sent))] == [f"{case}/out/{name}", f"{case}/sent/{name}"]
    assert read_files(remote / case / "out") == read_files(remote / case / "in") == others


@pytest.mark.parametrize("name", ["report[1].csv", "[*]", "*"])
def test_a_pattern_still_matches(remote: Path, tmp_path: Path, name: str) -> None:
    write_files(remote / "in", {name: b"1", "report1.csv": b"2"})
    assert len(rows_of(move(Glob("in/*"), "out/"))) == 2
    assert sorted(read_files(remote)) == sorted([f"out/{name}", "out/report1.csv"])


@pytest.mark.parametrize("name", NASTY)
def test_a_text_is_a_literal_name_and_never_a_pattern(remote: Path, name: str) -> None:
    others = dict.fromkeys([*matched_by(name), "a", "1000"], b"other")
    write_files(remote / "in", {**others, name: b"meant"})
    rows = rows_of(move(f"in/{name}", "out/"))
    assert [row["source"] for row in rows] == [f"in/{name}"]
    assert read_files(remote / "in") == {other: b"other" for other in others if other != name}
    assert run(delete(FileInfo(f"out/{name}", name, 5, None)))[0]["path"] == f"out/{name}"


@pytest.mark.parametrize("name", ["report[1].csv", "*.csv", "?", "["])
@pytest.mark.parametrize("make", [delete, lambda name: move(name, "out/"), lambda name: download(name, "/nowhere/")])
def test_a_name_that_does_not_exist_is_missing_with_a_hint(remote: Path, name: str, make: Any) -> None:
    write_files(remote, {"report1.csv": b"", "x": b""})
    with pytest.raises(NotFound, match="no such file; names are literal, pass globs as pattern="):
        run(make(name))
    assert sorted(read_files(remote)) == ["report1.csv", "x"]


def test_a_directory_is_named_literally_too(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"x/[y]/a": b"1", "x/y/b": b"2", "*/c": b"3"})
    assert [row["path"] for row in rows_of(download("x/[y]/", f"{tmp_path}/"))] == ["x/[y]/a"]
    assert [row["path"] for row in rows_of(delete(["x/[y]/", "*/"]))] == ["x/[y]/a", "*/c"]
    assert read_files(remote) == {"x/y/b": b"2"}
    assert not (remote / "*").exists()


def test_a_retried_deletion_by_rows_touches_nothing_else(remote: Path) -> None:
    write_files(remote, {"in/r[1].csv": b"1", "in/r1.csv": b"2"})
    rows, state = [{"path": "in/r[1].csv"}], State()
    assert len(run(delete(rows), state=state)) == 1
    assert run(delete(rows), state=state, try_number=2) == []
    assert run(delete(rows), try_number=2) == []  # nothing is remembered there
    assert read_files(remote) == {"in/r1.csv": b"2"}


@pytest.mark.parametrize(
    ("kind", "names"),
    [(SFTPUploadOperator, "source"), (SFTPDownloadOperator, "source"), (SFTPMoveOperator, "source"),
     (SFTPDeleteOperator, "path")],
)  # fmt: skip
def test_names_or_pattern_are_required_when_the_dag_is_parsed(kind: Any, names: str) -> None:
    target = {} if kind is SFTPDeleteOperator else {"target": "t"}
    wrong: list[dict[str, object]] = [
        {},
        {names: None},
        {names: "a", "pattern": "b"},
        {names: "a", "from_manifest": "m"},
        {"pattern": "b", "from_manifest": "m"},
    ]
    for given_arguments in wrong:
        with pytest.raises(ValueError, match=f"specify exactly one of {names}, pattern and from_manifest, not "):
            kind(task_id="t", **target, **given_arguments)
    kind.partial(task_id="t", **target).expand(**{names: ["a", "b"]})


@pytest.mark.parametrize("what", ["include", "exclude"])
def test_filters_of_names_are_refused_before_anything_is_done(remote: Path, what: str) -> None:
    write_files(remote, {"in/a.csv": b""})
    with pytest.raises(AirflowFailException, match="filter the files of a directory or pattern; path names files"):
        run(delete([{"path": "in/a.csv"}], **{what: "*.txt"}))
    assert sorted(read_files(remote)) == ["in/a.csv"]


def test_filters_keep_excluded_files_and_their_directory(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"in/a.csv": b"1", "in/b.txt": b"2", "in/.old/c.csv": b"3", "in/d/e.csv": b"4"})
    (row,) = rows_of(download("in/", f"{tmp_path}/", include="*.csv", exclude=[".*", "d"]))
    assert row["path"] == "in/a.csv"
    rows = rows_of(delete("in/", include="*.csv", exclude=".*"))
    assert [row["path"] for row in rows] == ["in/a.csv", "in/d/e.csv"]
    assert sorted(read_files(remote)) == ["in/.old/c.csv", "in/b.txt"]
    assert [row["source"] for row in rows_of(move(Glob("in/.old/*"), "out/", exclude=".*"))] == ["in/.old/c.csv"]


# -- how names arrive -------------------------------------------------------------------------------------------------

PATHS = ["in/report[1].csv", "in/a b&<'\"é🎉", "in/None"]
ROWS: list[dict[str, Any]] = [{"path": path, "size": 1, "modified_at": None} for path in PATHS]


class Lazily(Sequence[Any]):
    """Stand for a mapped output: a sequence, but not a list."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


def rendered(template: Any, *, native: bool, values: dict[str, Any]) -> SFTPMoveOperator:
    """A move whose source has been rendered as Airflow renders it."""
    with DAG("rendering", schedule=None, render_template_as_native_obj=native):
        operator = SFTPMoveOperator(task_id="mv", source=template, target="out/")
    operator.render_template_fields(cast("Any", values))
    return operator


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "template",
    [
        "{{ rows | tojson }}",
        "{{ bare | tojson }}",
        "{{ text }}",
        [{"path": "{{ rows[0].path }}"}, {"path": "{{ rows[1].path }}"}, "{{ rows[2].path }}"],
        "{{ rows }}",
        "{{ rows | map(attribute='path') | list }}",
        "{{ rows | map(attribute='path') }}",
        "{{ mapped }}",
        "{{ mapped | tojson }}",
    ],
)
def test_rows_mean_the_same_however_a_template_renders_them(remote: Path, template: Any, native: bool) -> None:
    write_files(remote, dict.fromkeys([*PATHS, "in/report1.csv"], b"x"))
    values = {"rows": ROWS, "bare": [{"path": path} for path in PATHS], "text": json.dumps(ROWS), "mapped": [ROWS]}
    operator = rendered(template, native=native, values=values)
    became_text = not native and isinstance(template, str) and "tojson" not in template and "text" not in template
    if became_text:
        with pytest.raises(AirflowFailException, match=r"source is (a list|an object) that a template converted"):
            run(operator)
        assert sorted(read_files(remote)) == sorted([*PATHS, "in/report1.csv"])
    else:
        assert [row["source"] for row in run(operator)] == PATHS
        assert sorted(read_files(remote / "in")) == ["report1.csv"]


@pytest.mark.parametrize(
    "value",
    [ROWS, tuple(ROWS), Lazily(ROWS), Lazily([ROWS[:1], ROWS[1:]]), Lazily([ROWS[:2], [], ROWS[2:]]), json.dumps(ROWS)],
)
@pytest.mark.parametrize("native", [True, False])
def test_the_output_of_a_task_selects_its_files(remote: Path, value: Any, native: bool) -> None:
    write_files(remote, dict.fromkeys([*PATHS, "in/report1.csv"], b"x"))
    with DAG("passing", schedule=None, render_template_as_native_obj=native):
        wait = SFTPFileSensor(task_id="wait", path="in/")
        operator = SFTPMoveOperator(task_id="mv", source=wait.output, target="out/")
    pulled = SimpleNamespace(xcom_pull=lambda **_: value)
    operator.render_template_fields(cast("Any", {"ti": pulled}))
    assert [row["source"] for row in run(operator)] == PATHS
    assert sorted(read_files(remote / "in")) == ["report1.csv"]


@pytest.mark.parametrize("value", ["2024", "1_000", "0x10", "1e3", "True", "[1]", "{1}", "'a'", " 1"])
@pytest.mark.parametrize("native", [True, False])
def test_a_name_without_a_template_is_rendered_unchanged(remote: Path, value: str, native: bool) -> None:
    write_files(remote, {value: b"x"})
    for source in ([value], [{"path": value}], {"path": value}, value):
        operator = rendered(source, native=native, values={})
        operator.target = "moved"
        operator.rename = "{name}"
        (row,) = run(operator)
        assert row["source"] == value
        (remote / row["path"]).rename(remote / value)


def test_the_delimiters_of_the_dag_mark_templates(remote: Path) -> None:
    write_files(remote, {"2024": b"", "{{ x }}": b""})
    delimiters = {"variable_start_string": "<<", "variable_end_string": ">>"}
    with DAG("own", schedule=None, render_template_as_native_obj=True, jinja_environment_kwargs=delimiters):
        operator = SFTPMoveOperator(task_id="mv", source=["<< year >>.csv", "{{ x }}", "2024"], target="o/")
    operator.render_template_fields(cast("Any", {"year": 2024}))
    assert operator.source == ["2024.csv", "{{ x }}", "2024"]


@pytest.mark.parametrize("missing", [None, [], [[]]])
def test_an_output_without_files_is_skipped_or_a_failure(remote: Path, missing: Any) -> None:
    operator = move("x", "out/", missing_ok=True)
    operator.source = missing
    if missing is None:
        with pytest.raises(AirflowFailException, match="source is None"):
            run(operator)
    else:
        assert run(operator) == []
        strict = move("x", "out/")
        strict.source = missing
        with pytest.raises(AirflowFailException, match="source is empty"):
            run(strict)


@needs_literal
@pytest.mark.timeout(120)
def test_a_real_task_works_on_the_files_that_are_named(remote: Path, tmp_path: Path) -> None:
    names = NASTY[:20]
    others = {other: b"other" for name in names for other in matched_by(name) if other not in names}
    write_files(remote / "in", {**others, **dict.fromkeys(names, b"meant")})
    dag = f"""
        from airflow.sdk import DAG, literal
        from airflow_sftp_backend.operators import SFTPMoveOperator
        with DAG("naming"):
            SFTPMoveOperator(
                task_id="mv", source=literal({[{"path": f"in/{name}"} for name in names]!r}), target="out/"
            )
    """
    write_files(tmp_path, {"dags/naming.py": textwrap.dedent(dag).encode()})
    run_supervised(tmp_path / "dags", "naming", "mv", tmp_path / "mv.log")
    assert read_files(remote) == {
        **{f"out/{name}": b"meant" for name in names},
        **{f"in/{name}": b"other" for name in others},
    }


# -- objects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["report[1].csv", "a*", "a?", "a#", "a?b#c", "**", "[!b]", "é"])
def test_only_the_object_of_a_name_is_touched(remote: Path, store: str, name: str) -> None:
    top = ObjectStoragePath(store)
    others = {other: b"other" for other in ("report1.csv", "a", "ab", "abc", "b", "c") if other != name}
    for other, content in others.items():
        (top / "in[1]" / other).write_bytes(content)
        (top / "in1" / other).write_bytes(content)
    write_files(remote, {name: b"meant"})
    rows = rows_of(download({"path": name}, f"{store}/in[1]/"))
    assert rows[0]["target"] == f"{store}/in[1]/{name}"
    assert (top / "in[1]" / name).read_bytes() == b"meant"
    for other, content in others.items():
        assert (top / "in[1]" / other).read_bytes() == content
    run(upload(rows, "one/"))
    run(upload(rows[0]["target"], "two"))
    run(upload(f"{store}/in[1]/", "all/"))
    assert read_files(remote / "one") == {name: b"meant"}
    assert (remote / "two").read_bytes() == b"meant"
    assert read_files(remote / "all") == {**others, name: b"meant"}
    with pytest.raises(FileNotFoundError, match="names are literal"):
        run(upload(f"{store}/in[1]/no*", "x"))


def test_a_pattern_of_objects_stays_in_its_directory(remote: Path, store: str) -> None:
    top = ObjectStoragePath(store)
    for path in ("in[1]/a.csv", "in[1]/deep/b.csv", "in1/c.csv", "in[1]/d.txt"):
        (top / path).write_bytes(b"x")
    run(upload(Glob(f"{store}/in[[]1]/**/*.csv"), "out/"))
    assert sorted(read_files(remote)) == ["out/a.csv", "out/deep/b.csv"]
    run(upload(Glob(f"{store}/in[1]/*"), "one/", exclude="*.txt"))
    assert sorted(read_files(remote / "one")) == ["in1/c.csv"]


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["in/link", "in/link/", {"path": "in/link"}, ["in/link/", "in/"], "in/"])
@pytest.mark.parametrize("leads_to", ["../precious", "nowhere", "../precious/a"])
def test_deleting_a_link_deletes_only_the_link(remote: Path, path: Any, leads_to: str) -> None:
    write_files(remote, {"precious/a": b"1", "in/b": b"2"})
    (remote / "in/link").symlink_to(leads_to)
    if path == "in/link/" and leads_to == "../precious/a":
        assert [row["action"] for row in run(delete(path, dry_run=True))] == ["would delete"]
    rows = run(delete(path))
    assert not (remote / "in/link").is_symlink()
    assert read_files(remote / "precious") == {"a": b"1"}
    assert (remote / "in/b").exists() == ("in/" not in path if isinstance(path, list) else path != "in/")
    assert path == "in/" or "in/link" in [row["path"] for row in rows]


def test_plans_and_retries_recognise_links(remote: Path) -> None:
    write_files(remote, {"precious/a": b"1"})
    names, state = ["to-folder/", "to-nothing"], State()
    (remote / "to-folder").symlink_to("precious")
    (remote / "to-nothing").symlink_to("nowhere")
    planned = run(delete(names, dry_run=True))
    assert [(row["path"], row["action"]) for row in planned] == [(n.strip("/"), "would delete") for n in names]
    assert len(run(delete(names), state=state)) == 2
    assert run(delete(names), state=state, try_number=2) == []
    assert read_files(remote) == {"precious/a": b"1"}


def test_filters_do_not_follow_a_link(remote: Path) -> None:
    write_files(remote, {"precious/a.csv": b"1"})
    (remote / "link").symlink_to("precious")
    with pytest.raises(AirflowFailException, match="is a symbolic link, and include and exclude do not apply"):
        run(delete("link/", include="*.csv"))
    assert read_files(remote / "precious") == {"a.csv": b"1"}
