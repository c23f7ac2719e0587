"""Run the operations of a call on the session.

The package resolves paths, retries, and cleans up.
"""
