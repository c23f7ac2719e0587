"""Runs the operations of a call on the session: path resolution, retries and clean-up."""
