"""Mirror a directory of the server to an object store.

Only new and changed files are transferred.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_sftp_backend.operators import SFTPSyncOperator

with DAG("mirror_to_object_store", schedule=None, params={"store": "s3://lake"}) as dag:
    SFTPSyncOperator(
        task_id="mirror",
        source="published",
        target="{{ params.store }}/published",
        direction="download",
    )
