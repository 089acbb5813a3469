"""TLS contexts from the gateway's settings."""

from __future__ import annotations

import ssl

from ..errors import GatewayError
from ..system import tls
from .settings import TlsClient, TlsServer

__all__ = ["client_context", "server_context"]


def client_context(settings: TlsClient | None) -> ssl.SSLContext:
    """Return a context for connections that the gateway makes. Without settings the system's CA certificates verify the server.

    Raises:
        GatewayError: a file cannot be read, or is not a certificate or key.
    """
    settings = settings or TlsClient()
    return tls.client_context(settings.ca, settings.certificate, settings.key, error=GatewayError)


def server_context(settings: TlsServer) -> ssl.SSLContext:
    """Return a context for connections that the gateway accepts.

    Raises:
        GatewayError: a file cannot be read, or is not a certificate or key.
    """
    return tls.server_context(settings.certificate, settings.key, settings.client_ca, error=GatewayError)
