"""A real Airflow on several machines of this machine, for the tests with the marker `cluster`."""
