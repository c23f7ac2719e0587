"""Use the connection form in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="the form needs selenium: install the extra 'test'")


from tests.support.airflow.browser import ConnectionForm, api_server, chrome, chromium
from tests.support.servers import AsyncsshServer

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(chromium() is None, reason="NOT TESTED IN A BROWSER: install chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an Airflow of its own."""
    with api_server(tmp_path_factory.mktemp("site")) as url:
        yield url


@pytest.fixture
def form(site: str, tmp_path: Path) -> Iterator[ConnectionForm]:
    """The form; a test that fails leaves a picture of the page."""
    with chrome() as browser:
        try:
            yield ConnectionForm(browser, site)
        finally:
            browser.save_screenshot(str(tmp_path / "page.png"))


def test_a_connection_is_added_reopened_and_tested_in_the_page(form: ConnectionForm) -> None:
    with AsyncsshServer() as server:
        folder = server.fresh()
        form.add("partner", "SFTP Backend")
        assert form.groups == [
            "Standard Fields", "Server", "Private key", "Azure Key Vault", "Jump host", "Extra Fields JSON",
        ]  # fmt: skip
        form.fill(host=server.host, port=str(server.port), login=server.username, password=server.password)
        form.open("Server")
        assert form.field("base_path").get_attribute("value") == ""
        assert form.field("base_path").get_attribute("placeholder")
        form.fill(base_path=folder.base_path, known_host_keys=server.known_hosts)
        assert form.choices("Host key policy") == ["strict", "tofu", "auto"]
        form.save()

        form.edit("partner")
        assert form.field("host").get_attribute("value") == server.host
        assert form.field("password").get_attribute("type") == "password"
        form.open("Server")
        assert form.field("base_path").get_attribute("value") == folder.base_path
        keys = form.field("known_host_keys")
        assert (keys.tag_name, keys.get_attribute("value")) == ("textarea", server.known_hosts)
        form.open("Private key")
        assert form.field("private_key").tag_name == "textarea"
        assert form.field("private_key_passphrase").get_attribute("type") == "password"

        key = server.host_keys[0].get_fingerprint()
        shown = form.test("partner")
        assert f"Connected to {server.username}@{server.host}:{server.port}, base path {folder.base_path}" in shown
        assert f"host key {key}: known_host_keys line 1" in shown

        form.edit("partner")
        form.fill(password="wrong horse")
        form.save()
        shown = form.test("partner")
        assert f"the server refuses the login of '{server.username}': refused: the password" in shown
        assert "check the user name and the password" in shown
        assert "wrong horse" not in shown


def test_the_form_is_readable_at_a_glance(form: ConnectionForm, tmp_path: Path) -> None:
    picture = Path(os.environ.get("FORM_SCREENSHOT", tmp_path / "form.png"))
    form.add("partner_a", "SFTP Backend")
    form.fill(host="sftp.example.com", port="22", login="partner-a", password="not-a-real-password")
    form.open("Server")
    form.fill(base_path="/outbox", known_host_keys="SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8")
    form.screenshot(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
