"""Secrets of Azure Key Vault: references, clients, identities and errors."""
