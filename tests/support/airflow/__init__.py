"""Helpers for tests that run inside Airflow."""
