"""Task logs show no secret in any form, under Airflow's own supervisor."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import asyncssh
import pytest

from tests.support.airflow.supervised_task import run
from tests.support.key_vault import Vault

TASK = textwrap.dedent("""
    from airflow.sdk import dag, task

    @dag
    def telling():
        @task
        def tell():
            import json, logging, sys
            from airflow_sftp_backend.hooks import SFTPBackendHook

            hook = SFTPBackendHook("partner")
            config = hook.config()
            renewed = config.refresh()
            secrets = [config.private_key, config.password, config.passphrase, renewed.password]
            for secret in [one.reveal() for one in secrets]:
                for text in (secret, json.dumps(secret), json.dumps({"a": secret}, ensure_ascii=False), repr(secret),
                             *secret.splitlines(), "x" + secret + "y", secret.replace("\\n", "\\\\n"), str([secret])):
                    logging.getLogger("anything").warning("by the logger: %s", text)
                    logging.getLogger("airflow.task").info("by the task's: " + text)
                    print("printed:", text)
                    print("printed to stderr:", text, file=sys.stderr)
            print("the end", config, hook.get_connection("partner"))
            raise ValueError("raised: " + config.private_key.reveal() + config.password.reveal())
        tell()

    telling()
""")


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa"])
@pytest.mark.parametrize("form", ["as it is", "on one line", "with written newlines"])
def test_a_task_that_logs_its_secrets_in_every_way_shows_none(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, form: str
) -> None:
    pem = asyncssh.generate_private_key(kind).export_private_key("openssh").decode()
    key = {"as it is": pem, "on one line": pem.replace("\n", " "), "with written newlines": pem.replace("\n", "\\n")}
    passwords = ['sword"fish\\ pässword', "open sesame's door"]
    vault.put("key", key[form])
    vault.put("whole", json.dumps({"conn_type": "sftp", "host": "h", "extra": {"passphrase": passwords[1]}}))
    vault.put("password", passwords[0])
    names = {"private_key_secret": "key", "connection_secret": "whole", "password_secret": "password"}
    connection = {"conn_type": "sftp_backend", "extra": {"key_vault_url": vault.url, **names}}
    monkeypatch.setenv("AIRFLOW_CONN_PARTNER", json.dumps(connection))
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags/telling.py").write_text(TASK)

    lines = run(tmp_path / "dags", "telling", "tell", tmp_path / "log")

    texts = [str(line["event"]) for line in lines] + [json.dumps(line, ensure_ascii=False) for line in lines]
    logged = "\n".join(texts)
    for witness in ("by the logger: ***", "by the task's: ***", "printed: ***", "printed to stderr: ***", "the end"):
        assert witness in logged, witness
    assert "raised: " in logged
    body = [line for line in pem.splitlines() if "-----" not in line]
    pieces = {line[at : at + 16] for line in body for at in range(max(1, len(line) - 15))}
    quoted = {json.dumps(text)[1:-1] for text in passwords} | {repr(text)[1:-1] for text in passwords}
    shown = [piece for piece in pieces | set(passwords) | quoted if piece in logged]
    assert shown == []
    assert not re.search(r"(?<!pas)sword|sesame", logged)  # the names of fields may be shown
