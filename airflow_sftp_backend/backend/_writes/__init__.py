"""Atomic writes on the server: temporary files, resumption, verification, renames and backups."""
