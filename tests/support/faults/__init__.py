"""Faults, enumerated: a model of an SFTP server in process, and connections to it that fail at any chosen message."""
