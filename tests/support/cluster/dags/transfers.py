"""Transfer the files that the parameters of a run name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from airflow.sdk import DAG, task

from airflow_sftp_backend.operators import SFTPDownloadOperator, SFTPUploadOperator

DEFAULTS: Final[dict[str, Any]] = {"retries": 4, "retry_delay": timedelta(seconds=1)}
PARAMS: Final[dict[str, Any]] = {"conn_id": "", "source": "", "target": ""}
TARGET: Final[dict[str, Any]] = {"target": "{{ params.target }}", "sftp_conn_id": "{{ params.conn_id }}"}
PATHS: Final[dict[str, Any]] = {"source": "{{ params.source }}", **TARGET}

UPLOADS: Final[dict[str, dict[str, Any]]] = {
    "upload": {},
    "upload_verified": {"verify": "sha256"},
    "upload_replacing": {"if_exists": "replace"},
}
for dag_id, arguments in UPLOADS.items():
    with DAG(dag_id, schedule=None, default_args=DEFAULTS, params=PARAMS):
        SFTPUploadOperator(task_id="upload", **PATHS, **arguments)

with DAG("download", schedule=None, default_args=DEFAULTS, params=PARAMS):
    SFTPDownloadOperator(task_id="download", **PATHS)

with DAG("upload_many", schedule=None, default_args=DEFAULTS, params={**PARAMS, "sources": []}):

    @task
    def names(**context: Any) -> list[str]:
        """Return the names of the files."""
        sources: list[str] = context["params"]["sources"]
        return sources

    SFTPUploadOperator.partial(task_id="upload", **TARGET).expand(source=names())
