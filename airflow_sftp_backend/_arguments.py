"""Define the error for an argument that a DAG author passed."""

from __future__ import annotations


class InvalidArgument(ValueError):
    """Report an invalid argument of an operator, sensor or trigger.

    A retry cannot help, so the error fails a task at once. Raise it only for values that a DAG author passed. Any other
    ValueError or TypeError is a programming error, and Airflow retries the task.
    """
