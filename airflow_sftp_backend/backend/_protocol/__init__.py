"""Speak SFTP version 3 over one or several channels.

The package has packets, replies and the scheduler of operations.
"""
