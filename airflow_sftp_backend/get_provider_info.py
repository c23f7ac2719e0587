"""Describe this package to Airflow as pure data.

Every Airflow process reads the data, so this module imports neither Airflow nor paramiko nor azure.
"""

from __future__ import annotations

from ._connections.fields import CONN_TYPE, HOOK_NAME, conn_fields, field_behaviour

_PACKAGE = "airflow_sftp_backend"
_INTEGRATION = "SFTP Backend"


def get_provider_info() -> dict[str, object]:
    """Return the provider's info in the terms of Airflow's ``provider.yaml.schema.json``."""
    return {
        "package-name": "airflow-sftp-backend",
        "name": "SFTP Backend",
        "description": "Files to, from and on any SSH/SFTP server: atomic, verified, fast, secure by default",
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02",
                "tags": ["protocol"],
            }
        ],
        **{kind: [_modules(kind)] for kind in ("hooks", "operators", "sensors", "triggers")},
        "task-decorators": [{"name": "sftp_files", "class-name": f"{_PACKAGE}.decorators.sftp_files_task"}],
        "filesystems": [f"{_PACKAGE}.filesystem"],
        "connection-types": [
            {
                "connection-type": CONN_TYPE,
                "hook-class-name": f"{_PACKAGE}.hooks.SFTPBackendHook",
                "hook-name": HOOK_NAME,
                "ui-field-behaviour": {name.replace("_", "-"): value for name, value in field_behaviour().items()},
                "conn-fields": conn_fields(),
            }
        ],
        "asset-uris": [
            {
                "schemes": ["sftp"],
                "handler": f"{_PACKAGE}.assets.sanitize_uri",
                "factory": f"{_PACKAGE}.assets.create_asset",
                "to_openlineage_converter": f"{_PACKAGE}.assets.convert_asset_to_openlineage",
            }
        ],
    }


def _modules(kind: str) -> dict[str, object]:
    return {"integration-name": _INTEGRATION, "python-modules": [f"{_PACKAGE}.{kind}"]}
