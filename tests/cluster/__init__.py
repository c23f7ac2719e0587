"""Tests on an Airflow of several machines: `make cluster`."""
