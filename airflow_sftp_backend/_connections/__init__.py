"""Declare, parse and resolve the fields of an Airflow connection."""
