"""Provide a model server, and connections that fail at any message."""
