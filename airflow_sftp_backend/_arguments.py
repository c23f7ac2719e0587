"""The error of an argument that a DAG author passed."""

from __future__ import annotations


class InvalidArgument(ValueError):
    """An argument of an operator, sensor or trigger has a value that it cannot have.

    Retrying does not help, so it fails a task at once. Raise it only for a value that a DAG author passed: any other
    ValueError or TypeError is a programming error, and Airflow retries the task.
    """
