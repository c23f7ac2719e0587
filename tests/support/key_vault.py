"""Serve a key vault and its login services on loopback.

They use HTTPS with a certificate authority of their own.

What it answers follows Key Vault's REST API (GET secret, version 7.4 and later), the challenge of its authentication,
Microsoft Entra's token endpoint (client credentials: a secret, a certificate, a federated token) and the identity
endpoint of a virtual machine. The real SDKs find it by `Vault.environment` alone: the authority, the identity endpoint
and the certificates to trust are settings of theirs. The challenge names ``https://0.0.1:<port>`` as resource, since an
SDK takes a resource only if the vault's host, here 127.0.0.1, ends with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import socketserver
import ssl
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import trustme
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

HOST: Final = "127.0.0.1"
PATIENCE: Final = 30.0
"""Seconds after which a silent answer gives up by itself."""

TENANT: Final = "6a1f1c3c-5d0e-4a55-9c0b-0f6d3f1f7b11"
"""Of every vault: the SDK keeps challenges for the whole process, by host and port, and a port may be taken again."""

CHALLENGE: Final = "challenge"
SECRET: Final = "secret"
CLIENT_SECRET: Final = "client secret"
CERTIFICATE: Final = "certificate"
WORKLOAD_IDENTITY: Final = "workload identity"
MANAGED_IDENTITY: Final = "managed identity"
DISCOVERY: Final = "discovery"


@dataclass(frozen=True)
class Version:
    """A version of a secret; times are seconds since 1970."""

    name: str
    value: str
    enabled: bool = True
    expires: float | None = None
    not_before: float | None = None
    version: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Fault:
    """Define a faulty reply.

    ``silent`` means no reply; ``body`` may be bytes that are not JSON.
    """

    status: int = 500
    body: Mapping[str, object] | bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False

    @classmethod
    def error(cls, status: int, code: str, inner: str = "", message: str = "", **headers: str) -> Fault:
        """As Key Vault words errors; a header's ``_`` stands for ``-``."""
        error: dict[str, object] = {"code": code, "message": message or f"This is {code}."}
        if inner:
            error["innererror"] = {"code": inner}
        return cls(status, {"error": error}, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Application:
    """Define credentials that the token endpoint accepts.

    They are a ``secret``, a ``certificate`` or a ``federated_token``.
    """

    client_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    secret: str | None = None
    certificate: x509.Certificate | None = None
    federated_token: str | None = None


class Vault:
    """Serve a vault in a ``with`` block; ``folder`` holds the certificate.

    ``counts`` holds the requests by kind: the names in capitals above. A ``lax_authority`` names no key identifiers
    in its certificates, as many private ones: Python 3.13 and newer refuse them.
    """

    def __init__(self, folder: Path, *, lax_authority: bool = False) -> None:
        self.tenant = TENANT
        self._lax_authority = lax_authority
        self.ca_file = folder / "ca.pem"
        self.counts: Counter[str] = Counter()
        self.applications: list[Application] = []
        self.managed_identities: dict[str, str] = {}
        """Client id, "" for the machine's own -> the tenant it is of."""
        self.closing = threading.Event()
        self.when_asked: Callable[[str], object] = lambda kind: None
        """Called with the kind of each request, before it is answered."""
        self._secrets: dict[str, list[Version]] = {}
        self._tokens: dict[str, str] = {}
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if self._lax_authority:
            certificate = _lax_certificate(self.ca_file)
        else:
            authority = trustme.CA()
            authority.cert_pem.write_to_path(self.ca_file)
            certificate = authority.issue_cert(HOST)
        self._server = _Server(self, certificate)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="vault")
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()
        self._thread.join(PATIENCE)

    @property
    def host(self) -> str:
        """Address and port, as a reference names them."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Its URL."""
        return f"https://{self.host}"

    def environment(self) -> dict[str, str]:
        """The variables by which any process with the SDKs finds it."""
        return {
            "AZURE_AUTHORITY_HOST": self.url,
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": self.url,
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
            "NO_PROXY": HOST,
            "no_proxy": HOST,
        }

    def put(self, name: str, value: str, **attributes: Any) -> str:
        """Make ``value`` the current version of a secret.

        ``attributes`` are those of `Version`. Returns the version's id.
        """
        made = Version(name, value, **attributes)
        with self._lock:
            self._secrets.setdefault(name, []).append(made)
        return made.version

    def register(self, **attributes: Any) -> Application:
        """An application with attributes of `Application`."""
        self.applications.append(Application(**attributes))
        return self.applications[-1]

    def fail(self, kind: str, *faults: Fault) -> None:
        """The next requests of a kind are answered by these, one each."""
        self._faults[kind].extend(faults)

    def tokens(self) -> list[str]:
        """All tokens given out."""
        return list(self._tokens)

    # ---- for the handler

    def count(self, kind: str) -> Fault | None:
        """Notes a request; returns the fault to answer it with."""
        self.when_asked(kind)
        with self._lock:
            self.counts[kind] += 1
            return self._faults[kind].popleft() if self._faults[kind] else None

    def issue(self, tenant: str) -> dict[str, object]:
        """A new token, as the token endpoints put it."""
        token = f"token-{secrets.token_hex(16)}"
        self._tokens[token] = tenant
        return {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": 3600,
            "expires_on": int(time.time()) + 3600,
            "resource": "https://0.0.1",
        }

    def tenant_of(self, token: str) -> str | None:
        """The tenant a token was given out for."""
        return self._tokens.get(token)

    def find(self, name: str, version: str) -> Version | None:
        """That version, the current one for ""."""
        found = [one for one in self._secrets.get(name, []) if version in ("", one.version)]
        return found[-1] if found else None


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = False  # so that server_close waits for all of them

    def __init__(self, vault: Vault, certificate: trustme.LeafCert) -> None:
        self.vault = vault
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._open: set[socket.socket] = set()
        super().__init__((HOST, 0), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Negotiate TLS in the connection's own thread.

        A slow client does not delay others.
        """
        with contextlib.suppress(OSError), self._context.wrap_socket(request, server_side=True) as wrapped:
            self._open.add(wrapped)
            try:
                super().finish_request(wrapped, client_address)
            finally:
                self._open.discard(wrapped)

    def hang_up(self) -> None:
        """Ends the connections that clients keep open."""
        for held in list(self._open):
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Says nothing."""

    def do_GET(self) -> None:
        """Secrets, the tenant's configuration, and managed identities."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        if parts[0] == "secrets":
            self._secret(parts[1], parts[2] if len(parts) > 2 else "")
        elif url.path.endswith("/.well-known/openid-configuration"):
            self._discovery(parts[0])
        elif url.path == "/metadata/identity/oauth2/token":
            self._managed_identity(query.get("client_id", ""))
        else:
            self._answer(HTTPStatus.NOT_FOUND, {})

    def do_POST(self) -> None:
        """Tokens for applications."""
        length = int(self.headers.get("Content-Length", "0"))
        form = {name: values[0] for name, values in parse_qs(self.rfile.read(length).decode()).items()}
        self._application(urlsplit(self.path).path.strip("/").split("/")[0], form)

    def _secret(self, name: str, version: str) -> None:
        vault = self.server.vault
        tenant = vault.tenant_of(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if tenant != vault.tenant:
            vault.count(CHALLENGE)
            self._challenge("AKV10000: Request is missing a Bearer or PoP token." if tenant is None else "AKV10032")
            return
        if self._failed(SECRET):
            return
        found = vault.find(name, version)
        if found is None:
            self._fault(Fault.error(404, "SecretNotFound", message=f"A secret with name {name} was not found."))
        elif not found.enabled:
            self._fault(Fault.error(403, "Forbidden", "SecretDisabled"))
        else:
            dates = {"exp": found.expires, "nbf": found.not_before}
            attributes = {"enabled": True} | {key: int(at) for key, at in dates.items() if at is not None}
            address = f"{vault.url}/secrets/{name}/{found.version}"
            self._answer(HTTPStatus.OK, {"value": found.value, "id": address, "attributes": attributes})

    def _challenge(self, message: str) -> None:
        vault = self.server.vault
        challenge = f'Bearer authorization="{vault.url}/{vault.tenant}", resource="https://0.0.1:{vault.port}"'
        body = {"error": {"code": "Unauthorized", "message": message}}
        self._answer(HTTPStatus.UNAUTHORIZED, body, {"WWW-Authenticate": challenge})

    def _discovery(self, tenant: str) -> None:
        vault = self.server.vault
        if self._failed(DISCOVERY):
            return
        if tenant != vault.tenant:
            self._refuse("invalid_tenant", 90002, f"Tenant '{tenant}' not found.")
            return
        base = f"{vault.url}/{tenant}"
        endpoints = {"token_endpoint": f"{base}/oauth2/v2.0/token", "authorization_endpoint": f"{base}/authorize"}
        self._answer(HTTPStatus.OK, endpoints | {"issuer": f"{base}/v2.0"})

    def _application(self, tenant: str, form: Mapping[str, str]) -> None:
        vault = self.server.vault
        known = [one for one in vault.applications if one.client_id == form.get("client_id")]
        application = known[0] if known else Application()
        assertion = form.get("client_assertion", "")
        if "client_secret" in form:
            kind, right = CLIENT_SECRET, form["client_secret"] == application.secret
        elif application.certificate is not None:
            kind, right = CERTIFICATE, _signed(assertion, application.certificate)
        else:
            kind, right = WORKLOAD_IDENTITY, assertion == application.federated_token
        if self._failed(kind):
            return
        if tenant != vault.tenant:
            self._refuse("invalid_tenant", 90002, f"Tenant '{tenant}' not found.")
        elif not known:
            self._refuse("unauthorized_client", 700016, "Application was not found in the directory.")
        elif not right and kind == CLIENT_SECRET:
            self._refuse("invalid_client", 7000215, "Invalid client secret provided.", HTTPStatus.UNAUTHORIZED)
        elif not right:
            self._refuse("invalid_client", 700027, "The assertion failed validation.", HTTPStatus.UNAUTHORIZED)
        else:
            self._answer(HTTPStatus.OK, vault.issue(tenant))

    def _managed_identity(self, client_id: str) -> None:
        vault = self.server.vault
        if self._failed(MANAGED_IDENTITY):
            return
        if client_id in vault.managed_identities:
            self._answer(HTTPStatus.OK, vault.issue(vault.managed_identities[client_id]))
        else:
            self._answer(
                HTTPStatus.BAD_REQUEST, {"error": "invalid_request", "error_description": "Identity not found"}
            )

    def _failed(self, kind: str) -> bool:
        fault = self.server.vault.count(kind)
        if fault is not None:
            self._fault(fault)
        return fault is not None

    def _fault(self, fault: Fault) -> None:
        if fault.silent:
            self.server.vault.closing.wait(PATIENCE)
            self.close_connection = True
        else:
            self._answer(fault.status, fault.body, fault.headers)

    def _refuse(self, error: str, code: int, description: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        """Answer as Microsoft Entra does.

        The AADSTS code is in the text and in a list.
        """
        text = f"AADSTS{code}: {description}"
        self._answer(status, {"error": error, "error_description": text, "error_codes": [code]})

    def _answer(
        self, status: int, body: Mapping[str, object] | bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(body, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _signed(assertion: str, certificate: x509.Certificate) -> bool:
    """Tell whether a certificate's key signed a JWT.

    The source is RFC 7515; RS256 and PS256 are supported.
    """
    signed, _, signature = assertion.rpartition(".")
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    schemes: dict[str, padding.AsymmetricPadding] = {
        "RS256": padding.PKCS1v15(),
        "PS256": padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH),
    }
    scheme = schemes[json.loads(_decoded(signed.partition(".")[0]))["alg"]]
    try:
        key.verify(_decoded(signature), signed.encode(), scheme, hashes.SHA256())
    except (ValueError, InvalidSignature):
        return False
    return True


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _lax_certificate(ca_file: Path) -> trustme.LeafCert:
    """Issue a vault certificate without key identifiers, and its authority's."""
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lax authority")])
    now = datetime.now(UTC)

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        return made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))

    root = builder(issuer, authority).add_extension(x509.BasicConstraints(True, None), critical=True)
    ca_file.write_bytes(root.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))])
    leaf = builder(x509.Name([]), server).add_extension(names, critical=True).sign(authority, hashes.SHA256())
    key = server.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return trustme.LeafCert(key, leaf.public_bytes(serialization.Encoding.PEM), [])


def client_certificate() -> tuple[x509.Certificate, str]:
    """Return a self-signed certificate for logins.

    The PEM text of its key and of itself is returned too.
    """
    made = trustme.CA(key_type=trustme.KeyType.RSA)  # logins by certificate are signed with RSA
    certificate = made.cert_pem.bytes()
    return x509.load_pem_x509_certificate(certificate), (made.private_key_pem.bytes() + certificate).decode()


class Clock:
    """Time that stands still until somebody sleeps."""

    def __init__(self) -> None:
        self.now = time.time()
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the time pass, and record the pause."""
        self.pauses.append(seconds)
        self.now += seconds
