"""Run DAG files in this process, and store their results.

DAGs run as by ``dag.test()``.

Called as ``python -m demo.run PARAMS_JSON RESULTS_FOLDER DAG_FILE ...`` with Airflow's environment set. Each DAG is
given those of the params that it has; the result of ``name.py`` is ``name.json``. Stops at the first DAG that fails.
"""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun


def main(params: str, results: str, *dag_files: str) -> int:
    """0 if every task succeeded."""
    return 0 if all(_run(Path(file), json.loads(params), Path(results)) for file in dag_files) else 1


def _run(dag_file: Path, params: dict[str, Any], results: Path) -> bool:
    spec = spec_from_file_location(dag_file.stem, dag_file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    dag = module.dag
    run = dag.test(run_conf={name: value for name, value in params.items() if name in dag.params})
    written = results / f"{dag_file.stem}.json"
    unfinished = written.with_suffix(".tmp")
    unfinished.write_text(json.dumps(_tasks(run)))
    unfinished.rename(written)
    return bool(run.state == "success")


def _tasks(run: DagRun) -> list[dict[str, Any]]:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.scalars(XComModel.get_many(run_id=run.run_id, dag_ids=run.dag_id, key="return_value"))
        rows = cast("list[XComModel]", found.all())
        returned = {(row.task_id, row.map_index): XComModel.deserialize_value(row) for row in rows}
    instances = sorted(run.get_task_instances(), key=lambda one: (str(one.start_date or ""), one.map_index))
    return [
        {
            "task": one.task_id,
            "map_index": one.map_index,
            "state": str(one.state),
            "seconds": (one.end_date - one.start_date).total_seconds() if one.start_date and one.end_date else 0.0,
            "returned": returned.get((one.task_id, one.map_index)),
        }
        for one in instances
    ]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
