"""Exchange files with a partner.

The DAG sends orders, waits for the receipt, archives it, and deletes the sent orders.

Runs with any connection called ``sftp_backend_default``. Params: ``orders`` is the local folder to send.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_sftp_backend.operators import SFTPDeleteOperator, SFTPMoveOperator, SFTPUploadOperator
from airflow_sftp_backend.sensors import SFTPFileSensor

with DAG(
    dag_id="partner_exchange",
    schedule=None,
    catchup=False,
    params={"orders": Param("/tmp/orders", type="string", description="Local folder whose files are sent")},  # noqa: S108
    doc_md=__doc__,
) as dag:
    send = SFTPUploadOperator(task_id="send_orders", source="{{ params.orders }}/", target="outbox/")
    receipt = SFTPFileSensor(
        task_id="wait_for_receipt", pattern="inbox/receipt-*.csv", stable_for=1, poke_interval=1, timeout=300
    )
    archive = SFTPMoveOperator(
        task_id="archive_receipt",
        source=receipt.output,
        target="archive/{{ dag_run.run_after | ds }}/",
    )
    clear = SFTPDeleteOperator(task_id="clear_outbox", path="outbox/")

    send >> receipt >> archive >> clear
