"""Write a DataFrame to a CSV file without a local file."""

from __future__ import annotations

from airflow.sdk import DAG, task

with DAG("dataframe_to_csv", schedule=None) as dag:

    @task
    def export() -> None:
        """Create or replace the file, which appears when it is complete."""
        import pandas as pd

        orders = pd.DataFrame({"order": [1, 2], "amount": [10.0, 12.5]})
        orders.to_csv("sftpbackend://sftp_backend_default@/outbox/orders.csv", index=False)

    export()
