"""Move processed files to a directory of the day.

A name that is taken gets a number.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_sftp_backend.operators import SFTPMoveOperator

with DAG("archive", schedule=None) as dag:
    SFTPMoveOperator(
        task_id="archive", pattern="processed/*.csv", target="archive/", rename="{date}/{name}", if_exists="number"
    )
