"""Run a real Airflow as several machines, for the marker `cluster`."""
