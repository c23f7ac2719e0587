"""Errors and open files of the fsspec file system."""
