"""Use the server in a task of your own."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_sftp_backend.hooks import SFTPBackendHook

with DAG("hook_in_a_task", schedule=None) as dag:

    @task
    def publish_index() -> int:
        """Write the names of all published files to a file."""
        with SFTPBackendHook().backend() as backend:
            names = [file.name for file in backend.find("published/**")]
            backend.write_text("outbox/INDEX", "\n".join(names), overwrite=True)
        return len(names)

    publish_index()
