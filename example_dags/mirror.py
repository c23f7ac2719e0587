"""Publish local reports, then fetch the reports of others.

Only new and changed files are transferred. A report that is deleted locally is deleted on the server too, but never
more than half of the reports in one run.

Params: ``reports`` is the local folder to publish, ``into`` the local folder for the files of others.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_sftp_backend.operators import SFTPSyncOperator

with DAG(
    dag_id="mirror",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    params={
        "reports": Param("/tmp/reports", type="string", description="Local folder to publish"),  # noqa: S108
        "into": Param("/tmp/published", type="string", description="Local folder for the files of others"),  # noqa: S108
    },
    doc_md=__doc__,
) as dag:
    publish = SFTPSyncOperator(
        task_id="publish",
        source="{{ params.reports }}",
        target="reports",
        direction="upload",
        delete=True,
        max_delete="50%",
    )
    fetch = SFTPSyncOperator(
        task_id="fetch", source="published", target="{{ params.into }}", direction="download", exclude="*.tmp"
    )
    publish >> fetch
