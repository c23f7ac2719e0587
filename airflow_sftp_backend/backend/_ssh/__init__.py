"""The SSH connection: connect, authenticate, check the host key, open channels."""
