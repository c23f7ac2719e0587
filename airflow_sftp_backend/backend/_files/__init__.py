"""SFTP operations on files and directories: generators over requests, without a socket."""
