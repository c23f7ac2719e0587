"""SFTP version 3 over one or several channels: packets, replies and the scheduler of operations."""
