"""Polling for files: conditions, shared connections, and files seen earlier."""
