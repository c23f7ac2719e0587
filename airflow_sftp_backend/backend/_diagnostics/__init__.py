"""Checks of a server and of a connection, step by step."""
