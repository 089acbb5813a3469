"""Objects through receive, screen (bundled model) and forward, with kill -9 of the whole service on the way.

    python benchmarks/gateway_endurance.py --objects 10000 --kills 20
    python benchmarks/gateway_endurance.py --objects 10000 --kills 0        # memory over them

One object in ten is a copy of a protected slice, and belongs in quarantine. The sender sends each object until it is acknowledged,
as modalities do. At the end each SOP Instance UID must have been forwarded once or quarantined once, by the archive's own record
and by the audit trail, whose chain must be whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from lcmem_onnx.runtime.gateway.audit_trail import trail_files, verify_trail
from lcmem_onnx.runtime.gateway.config import read_config
from lcmem_onnx.runtime.gateway.example_config import write_example
from lcmem_onnx.runtime.gateway.lock import running_facts
from lcmem_onnx.runtime.gateway.settings import ReceiveSettings, Settings
from lcmem_onnx.runtime.gateway.spool import Spool, State
from pydicom import dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE, _config
from receiver import start_receiver

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT, MR = EXAMPLES / "gallery" / "ct-slice.dcm", EXAMPLES / "queries" / "other-mr-slice.dcm"
AT_ONCE = 20


class Gateway:
    def __init__(self, folder: Path, archive_port: int) -> None:
        self.config = write_example(folder)
        text = self.config.read_text(encoding="utf-8")
        for old, new in (
            ("port = 11112", "port = 0"),
            ("port = 4242", f"port = {archive_port}"),
            ('aet = "ORTHANC"', 'aet = "ARCHIVE"'),
            ("min_free_mb = 2048", "min_free_mb = 64"),
            ("first_seconds = 5.0", "first_seconds = 0.5"),
        ):
            text = text.replace(old, new)
        self.config.write_text(text, encoding="utf-8")
        self.settings = read_config(self.config)
        self.log = folder / "log.jsonl"
        index = [sys.executable, "-m", "lcmem_onnx.cli", "index", "build", str(CT), "--index", str(folder / "hospital.index"), "-q"]
        subprocess.run(index, check=True)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.settings.spool.folder.mkdir(exist_ok=True)
        (self.settings.spool.folder / "running.json").unlink(missing_ok=True)
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "lcmem_onnx.cli", "gateway", "--config", str(self.config)]
            self.process = subprocess.Popen(command, stderr=log, start_new_session=True)

    def port(self) -> int | None:
        return (running_facts(self.settings.spool.folder) or {}).get("receive_port")

    def kill(self) -> None:
        assert self.process
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def resident(self) -> dict[str, float]:
        """MB of each part."""
        parts = {}
        for line in self.log.read_text().splitlines():
            said = json.loads(line)
            if said["event"] == "part-started":
                parts[said["name"]] = said["pid"]
        found = {}
        for name, pid in parts.items():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for line in status.splitlines():
                if line.startswith("VmRSS"):  # missing in a part that was killed a moment ago
                    found[name] = int(line.split()[1]) / 1024
        return found


def make_objects(folder: Path, count: int) -> dict[str, Path]:
    """SOP Instance UID to file: nine harmless ones, then a copy of the protected slice, and so on."""
    folder.mkdir()
    found = {}
    for number in range(count):
        dataset = dcmread(CT if number % 10 == 9 else MR)
        uid = dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        found[str(uid)] = folder / f"{number}.dcm"
        dataset.save_as(found[str(uid)])
    return found


def send(port: int, paths: list[Path]) -> list[Path]:
    """Send over one association, and return what was acknowledged."""
    entity = AE(ae_title="STORESCU")
    for path in (CT, MR):
        meta = dcmread(path, stop_before_pixels=True).file_meta
        entity.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    association = entity.associate("127.0.0.1", port, ae_title="LCMEM")
    done = []
    for path in paths:
        if not association.is_established:
            break
        try:
            if association.send_c_store(path).get("Status") == 0:
                done.append(path)
        except (OSError, RuntimeError, ValueError):
            break
    if association.is_established:
        association.release()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3600, help="Give up after so long.")
    arguments = parser.parse_args()
    _config.STORE_SEND_CHUNKED_DATASET = True
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        work = Path(name)
        objects = make_objects(work / "objects", arguments.objects)
        only_stores = ReceiveSettings(port=0, aet="ARCHIVE", calling_aets=("LCMEM",))  # in a process of its own, which nobody kills
        archive, archive_port, archive_settings = start_receiver(work / "archive", only_stores)
        gateway = Gateway(work / "gateway", archive_port)
        try:
            run(gateway, objects, arguments.kills, arguments.seconds)
            report(gateway, archive_settings, objects)
        finally:
            if gateway.process and gateway.process.poll() is None:
                gateway.process.terminate()
                gateway.process.wait(60)
            archive.terminate()


def run(gateway: Gateway, objects: dict[str, Path], kills: int, seconds: float) -> None:
    began = time.monotonic()
    done_kills = 0
    todo = list(objects.values())
    total = len(todo)
    dice = random.Random(0)
    gateway.start()
    memory: list[tuple[int, dict[str, float]]] = []
    spool = Spool(gateway.settings)
    while True:
        if time.monotonic() - began > seconds:
            raise SystemExit(f"given up after {seconds:.0f} s")
        counts = spool.counts()
        ended = counts[State.FORWARDED] + counts[State.QUARANTINED]
        if not memory or ended >= memory[-1][0] + total // 20:
            memory.append((ended, gateway.resident()))
            print(f"{time.monotonic() - began:6.0f} s  {ended:6} ended, {len(todo):6} to send, {done_kills} kills", flush=True)
            print("        ", {part: round(size) for part, size in memory[-1][1].items()}, flush=True)
        if ended == total:
            break
        # The kills are spread over the whole way, at any moment of it: receiving, screening, forwarding.
        if done_kills < kills and ended >= (done_kills + 0.5) * total / kills:
            killer = threading.Timer(dice.uniform(0, 1), gateway.kill)
            killer.start()
            if todo and (port := gateway.port()):
                acknowledged = set(send(port, todo[:AT_ONCE]))
                todo = [path for path in todo if path not in acknowledged]
            killer.join()
            done_kills += 1
            gateway.start()
            continue
        waiting = counts[State.RECEIVED] + counts[State.SCREENED]
        port = gateway.port()
        if not todo or port is None or waiting > 200:
            time.sleep(0.05)
            continue
        acknowledged = set(send(port, todo[:AT_ONCE]))
        todo = [path for path in todo if path not in acknowledged]
    took = time.monotonic() - began
    print(f"{total} objects in {took:.0f} s ({total / took:.1f} a second), {done_kills} kills")
    spool.close()
    if not kills:
        tenth = next(sizes for ended, sizes in memory if ended >= total // 10)
        last = memory[-1][1]
        for part in last:
            print(
                f"{part:8} {tenth[part]:.1f} MB after a tenth, {last[part]:.1f} MB at the end ({last[part] / tenth[part] - 1:+.1%})"
            )
    assert gateway.process
    gateway.process.terminate()
    gateway.process.wait(60)


def report(gateway: Gateway, archive: Settings, objects: dict[str, Path]) -> None:
    with Spool(archive) as spool:
        arrived = Counter(item.sop_instance for item in spool.list([State.RECEIVED], 10**7))
    with Spool(gateway.settings) as spool:
        held = Counter(item.sop_instance for item in spool.list([State.QUARANTINED], 10**7))
        reasons = Counter(item.reason for item in spool.list([State.QUARANTINED], 10**7))
        checked = verify_trail(spool.database, gateway.settings.audit_folder)
    said: Counter[tuple[str, str]] = Counter()
    for path in trail_files(gateway.settings.audit_folder):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] == "forwarded" or (entry["event"] == "screened" and entry["state"] == "quarantined"):
                said[entry["event"], entry["sop_instance"]] += 1
    once = all(arrived[uid] + held[uid] == 1 for uid in objects)
    ends = Counter(event for event, _ in said)
    print(f"archive {sum(arrived.values())}, quarantine {sum(held.values())} {dict(reasons)}; each UID exactly once: {once}")
    print(f"audit trail: {dict(ends)}, said twice: {sum(count > 1 for count in said.values())}; ", end="")
    print(f"whole: {checked.whole}, {checked.lines} lines, taken up {checked.resumed} times after a torn line")
    if not once or not checked.whole or max(said.values()) > 1:
        raise SystemExit("NOT as it should be")


if __name__ == "__main__":
    main()
