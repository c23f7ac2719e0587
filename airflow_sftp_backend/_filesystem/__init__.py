"""Calls, open files and errors of the fsspec file system."""
