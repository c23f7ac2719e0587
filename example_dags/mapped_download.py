"""Download the archive with one mapped task per file.

Each file is verified by its SHA-256.

Params: ``into`` is the local folder the files land in.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param, task

from airflow_sftp_backend.hooks import FoundFile, SFTPBackendHook
from airflow_sftp_backend.operators import SFTPDownloadOperator

with DAG(
    dag_id="mapped_download",
    schedule=None,
    catchup=False,
    params={"into": Param("/tmp/fetched", type="string", description="Local folder the files land in")},  # noqa: S108
    doc_md=__doc__,
) as dag:

    @task
    def list_archive() -> list[FoundFile]:
        """Rows of the files to fetch; an operator takes their paths literally."""
        with SFTPBackendHook() as hook:
            return hook.find("archive/**")

    SFTPDownloadOperator.partial(
        task_id="fetch", target="{{ params.into }}/", if_exists="skip_same", verify="sha256"
    ).expand(source=list_archive())
