"""Where the Prefect server is, and whether it answers."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIME = 3.0  # seconds


def host_and_port(url: str) -> tuple[str, int]:
    """The two parts of `http://127.0.0.1:4200/api` that a socket needs."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def is_local(url: str) -> bool:
    """Whether a server at this address is on this machine and seen by nobody else."""
    return host_and_port(url)[0] in LOOPBACK


def answers(url: str | None) -> bool:
    """Whether something listens there; without an address Prefect starts a server for the one command."""
    if not url:
        return True
    try:
        socket.create_connection(host_and_port(url), timeout=TIME).close()
    except OSError:
        return False
    return True


def is_healthy(url: str) -> bool:
    """Whether a Prefect server is up there."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=TIME) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def page(url: str) -> str:
    """The address that people open."""
    return url.rstrip("/").removesuffix("/api")
