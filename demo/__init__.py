"""Run a day with a partner on one machine.

The demo starts an SFTP server and Airflow, and runs the example DAGs unmodified.
"""
