"""Declare, parse and load the fields of an Airflow connection."""
