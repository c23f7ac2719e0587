"""Transfers between local files and the server."""
