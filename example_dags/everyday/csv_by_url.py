"""Read a CSV file of the server by its URL."""

from __future__ import annotations

from airflow.sdk import DAG, task

with DAG("csv_by_url", schedule=None) as dag:

    @task
    def total() -> float:
        """Add the amounts of all orders."""
        import pandas as pd

        orders = pd.read_csv("sftpbackend://sftp_backend_default@/inbox/orders.csv")
        return float(orders["amount"].sum())

    total()
