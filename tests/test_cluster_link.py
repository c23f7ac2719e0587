"""The link of the cluster tests counts bytes and hides lost ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.cluster.link import Link
from tests.support.servers import wait_until
from tests.support.servers.server import HOST, PATIENCE

SOON = 0.3
"""Seconds in which nothing must arrive."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket of a server."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def link(listener: socket.socket) -> Iterator[Link]:
    """A link to that server."""
    with Link(listener.getsockname()[1]) as link:
        yield link


def connect(link: Link, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a connection through the link."""
    client = socket.create_connection((HOST, link.port), PATIENCE)
    server, _ = listener.accept()
    server.settimeout(PATIENCE)
    wait_until(lambda: link.open == 1, "the link")
    return client, server


def is_silent(end: socket.socket) -> bool:
    """Tell whether an end of a connection stays open and receives nothing."""
    end.settimeout(SOON)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    return False


def test_a_link_counts_the_bytes_of_both_directions(link: Link, listener: socket.socket) -> None:
    client, server = connect(link, listener)
    with client, server:
        client.sendall(b"request")
        assert server.recv(100) == b"request"
        server.sendall(b"a reply")
        assert client.recv(100) == b"a reply"
        assert (link.sent, link.received, link.connections) == (7, 7, 1)


def test_a_link_closes_both_ends_in_order(link: Link, listener: socket.socket) -> None:
    client, server = connect(link, listener)
    with server:
        client.close()
        assert server.recv(1) == b""
    wait_until(lambda: link.open == 0, "the end of the connection")


def test_held_replies_arrive_when_they_are_released(link: Link, listener: socket.socket) -> None:
    client, server = connect(link, listener)
    with client, server:
        link.hold_replies_when(lambda: True)
        server.sendall(b"reply")
        assert is_silent(client)
        link.hold_replies_when(None)
        client.settimeout(PATIENCE)
        assert client.recv(100) == b"reply"


def test_held_connections_are_opened_together(link: Link, listener: socket.socket) -> None:
    link.hold_connections(2)
    with socket.create_connection((HOST, link.port)):
        listener.settimeout(SOON)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.settimeout(PATIENCE)
        with socket.create_connection((HOST, link.port)), listener.accept()[0], listener.accept()[0]:
            pass


def test_a_lost_client_stays_connected_for_the_server(link: Link, listener: socket.socket) -> None:
    client, server = connect(link, listener)
    with server:
        link.lose_clients()
        client.close()
        assert is_silent(server)
        link.forget_lost()
        server.settimeout(PATIENCE)
        assert server.recv(1) == b""


def test_a_lost_server_stays_connected_for_the_client(link: Link, listener: socket.socket) -> None:
    client, server = connect(link, listener)
    with client, server:
        link.lose_server()
        assert server.recv(1) == b""
        client.sendall(b"into the void")
        assert is_silent(client)
        link.forget_lost()
        client.settimeout(PATIENCE)
        assert client.recv(1) == b""
