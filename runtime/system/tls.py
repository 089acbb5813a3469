"""TLS contexts of both sides: the one place that says which versions and which checks connections must have.

The error that a context raises is the caller's: an archive's certificate is an option of a command, a gateway's stands in its
configuration.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from ..errors import LcmemError

__all__ = ["client_context", "server_context"]


def client_context(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None, *, error: type[LcmemError]
) -> ssl.SSLContext:
    """Return a context for connections to a server: TLS 1.2 or newer, the server's certificate and name always verified.

    Args:
        ca: CA certificates (PEM) that replace the system's.
        certificate: the client's own certificate chain (PEM), for servers that ask for one.
        key: the certificate's private key (PEM), not encrypted.
        error: the class of the exception to raise.

    Raises:
        LcmemError: as `error`: a file cannot be read, or is not a certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as cause:
        raise error(f"TLS: the CA certificates in {ca} cannot be used: {_reason(cause)}. Give a PEM file") from cause
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        _load_identity(context, certificate, key, error)
    return context


def server_context(certificate: Path, key: Path, client_ca: Path | None = None, *, error: type[LcmemError]) -> ssl.SSLContext:
    """Return a context for a listening socket: TLS 1.2 or newer.

    Args:
        certificate: the server's certificate chain (PEM).
        key: the certificate's private key (PEM), not encrypted.
        client_ca: CA certificates (PEM); clients must then show a certificate that one of these signed. Without it no client is
            asked for a certificate.
        error: the class of the exception to raise.

    Raises:
        LcmemError: as `error`: a file cannot be read, or is not a certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_identity(context, certificate, key, error)
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as cause:
            raise error(f"TLS: the CA certificates in {client_ca} cannot be used: {_reason(cause)}. Give a PEM file") from cause
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_identity(context: ssl.SSLContext, certificate: Path, key: Path | None, error: type[LcmemError]) -> None:
    try:
        # OpenSSL asks for the password of an encrypted key on the terminal. A service has none and would hang there.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except OSError as cause:  # ssl.SSLError is one
        where = f"{certificate} with key {key}" if key else str(certificate)
        raise error(
            f"TLS: the certificate {where} cannot be used: {_reason(cause)}. Give a PEM certificate and its key, not encrypted"
        ) from cause


def _reason(cause: OSError) -> str:
    return cause.strerror or str(cause)
