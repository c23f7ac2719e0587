"""The fields of an Airflow connection: declared, parsed, and resolved to a `BackendConfig`."""
