"""Is a good client's C-ECHO answered while others misbehave? Each attack runs for some seconds, beside C-ECHOs one after the other.

    python benchmarks/gateway_hostile.py --seconds 20

A PDU of a claimed 4 GiB; three bytes and silence, 50 connections held open (opened again when they are closed); the TLS handshake
never begun, 50 likewise; a byte every 0.2 s, 20 connections. The receiving process has its default limits.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lcmem_onnx.runtime.gateway.settings import ReceiveSettings, TlsServer
from pynetdicom import AE
from receiver import start_receiver


def held(port: int, first: bytes, drip: float | None, stop: threading.Event) -> None:
    """One bad connection, made again whenever it is closed."""
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
                peer.sendall(first)
                peer.settimeout(drip or 0.5)
                while not stop.is_set():
                    try:
                        if not peer.recv(100):
                            break
                    except TimeoutError:
                        if drip:
                            peer.sendall(b"\0")
        except OSError:
            stop.wait(0.05)


def flood(port: int, stop: threading.Event) -> None:
    """4 GiB, as fast as they are taken."""
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
                peer.sendall(struct.pack(">BxI", 4, 0xFFFFFFFF))
                while not stop.is_set():
                    peer.sendall(bytes(1 << 16))
        except OSError:
            stop.wait(0.01)


def echo(port: int, tls: ssl.SSLContext | None) -> float:
    entity = AE(ae_title="GOOD")
    entity.add_requested_context("1.2.840.10008.1.1")
    began = time.monotonic()
    association = entity.associate("127.0.0.1", port, ae_title="LCMEM", **({"tls_args": (tls, "localhost")} if tls else {}))
    if not association.is_established or association.send_c_echo().Status != 0:
        return float("inf")
    seconds = time.monotonic() - began
    association.release()
    return seconds


def attacked(
    port: int, tls: ssl.SSLContext | None, attackers: list[Callable[[threading.Event], None]], seconds: float
) -> list[float]:
    stop = threading.Event()
    threads = [threading.Thread(target=attacker, args=(stop,), daemon=True) for attacker in attackers]
    for thread in threads:
        thread.start()
    times = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        times.append(echo(port, tls))
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join(10)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
             "/CN=x", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(work / "key.pem"), "-out", str(work / "cert.pem")],
            check=True, capture_output=True,
        )  # fmt: skip
        tls = ssl.create_default_context(cafile=work / "cert.pem")
        plain, port, _ = start_receiver(work / "plain", ReceiveSettings(port=0, calling_aets=("GOOD",)))
        with_tls = ReceiveSettings(port=0, calling_aets=("GOOD",), tls=TlsServer(work / "cert.pem", work / "key.pem"))
        secure, tls_port, _ = start_receiver(work / "secure", with_tls)
        attacks: dict[str, tuple[int, ssl.SSLContext | None, list[Callable[[threading.Event], None]]]] = {
            "nobody": (port, None, []),
            "a PDU of 4 GiB x 4": (port, None, [lambda stop: flood(port, stop)] * 4),
            "3 bytes, silence x 50": (port, None, [lambda stop: held(port, b"\1\0\0", None, stop)] * 50),
            "slow drip x 20": (port, None, [lambda stop: held(port, struct.pack(">BxI", 1, 200), 0.2, stop)] * 20),
            "no handshake x 50": (tls_port, tls, [lambda stop: held(tls_port, b"", None, stop)] * 50),
        }
        try:
            for what, (at, context, attackers) in attacks.items():
                times = sorted(attacked(at, context, attackers, seconds))
                print(
                    f"{what:24} {len(times):4} C-ECHOs, median {times[len(times) // 2]:.3f} s, longest {times[-1]:.3f} s",
                    flush=True,
                )
        finally:
            plain.terminate()
            secure.terminate()


if __name__ == "__main__":
    main()
