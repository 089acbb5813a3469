"""What the export of audit messages costs: messages, bytes and seconds for a day of studies without a match.

    python benchmarks/gateway_export.py --studies 20 --objects 500

Writes the trail of that day (each object received, clear and forwarded), sends it to a collector on this machine, and prints what
came there.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from lcmem_onnx.runtime.gateway.audit_trail import AuditTrail
from lcmem_onnx.runtime.gateway.database import Database
from lcmem_onnx.runtime.gateway.settings import SyslogSettings, TlsClient
from lcmem_onnx.runtime.gateway.syslog import SyslogSender

CT = "1.2.840.10008.5.1.4.1.1.2"


class Collector:
    """Counts what one connection brings."""

    def __init__(self, folder: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.messages = self.bytes = 0
        self.thread = threading.Thread(target=self._run, args=(context,), daemon=True)
        self.thread.start()

    def _run(self, context: ssl.SSLContext) -> None:
        plain, _ = self.server.accept()
        with context.wrap_socket(plain, server_side=True) as peer, peer.makefile("rb") as stream:
            while digits := stream.read(1):
                while not digits.endswith(b" "):
                    digits += stream.read(1)
                self.bytes += len(stream.read(int(digits)))
                self.messages += 1


def write_day(trail: AuditTrail, database: Database, studies: int, objects: int) -> None:
    for _ in range(studies):
        whose = {"study": secrets.token_hex(16), "patient": secrets.token_hex(16), "sop_class": CT}
        for _ in range(objects):
            known = {"object": secrets.token_hex(16), "sop_instance": secrets.token_hex(16)}
            near = [{"pseudonym": secrets.token_hex(16), "patient": secrets.token_hex(32), "frame": 0, "score": 0.123456}] * 3
            digests = {name: secrets.token_hex(32) for name in ("input_sha256", "data_sha256", "model_sha256", "index_sha256")}
            with database.write() as connection:
                trail.record(connection, "received", **known, source="c-store", calling_aet="CT1", address="10.0.0.7", **digests)
                trail.record(connection, "screened", **known, **whose, state="screened", verdict="clear", nearest=near, **digests)
                trail.record(connection, "forwarded", **known, **whose, destination="archive", status="0x0000", attempts=1)
    trail.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--objects", type=int, default=500)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = ["-subj", "/CN=c", "-addext", "subjectAltName=DNS:localhost"]
        keys = ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.pem")]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *keys], check=True, capture_output=True
        )
        database = Database(folder / "spool.sqlite")
        write_day(AuditTrail(database, folder / "audit"), database, asked.studies, asked.objects)
        lines = 3 * asked.studies * asked.objects
        print(f"{lines:,} lines, {sum(path.stat().st_size for path in (folder / 'audit').iterdir()) / 1e6:.1f} MB")
        collector = Collector(folder)
        tls = TlsClient(ca=folder / "server.pem", server_name="localhost")
        settings = SyslogSettings("127.0.0.1", collector.server.getsockname()[1], tls)
        sender = SyslogSender(settings, database, folder / "audit")
        began = time.perf_counter()
        while sender.send_waiting():
            pass
        sender.send_waiting(last=True)
        sender.close()
        collector.thread.join()
        taken = time.perf_counter() - began
        print(
            f"{collector.messages:,} messages, {collector.bytes / 1e6:.1f} MB, {taken:.1f} s: {lines / taken:,.0f} lines a second"
        )
        database.close()


if __name__ == "__main__":
    main()
