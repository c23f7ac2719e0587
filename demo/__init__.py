"""A day with a partner, on one machine: an SFTP server, Airflow, and the example DAGs as they are."""
