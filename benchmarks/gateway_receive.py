"""Receiving beside DCMTK's storescp: 60 objects of 512 KB over one association, alternating; and the memory that 72 MB take.

    python benchmarks/gateway_receive.py --rounds 7

Both are sent to by DCMTK's storescu, on this machine. The gateway's process fsyncs every object, its folder and its row before it
answers; storescp does not. The screening does not run here.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from lcmem_onnx.runtime.gateway.settings import ReceiveSettings
from pydicom import dcmread
from pydicom.uid import generate_uid
from receiver import start_receiver

MR = Path(__file__).parent.parent / "examples" / "pictures" / "queries" / "other-mr-slice.dcm"
STORESCU, STORESCP = Path("/usr/bin/storescu"), Path("/usr/bin/storescp")


def make_objects(folder: Path, count: int, size: int) -> list[Path]:
    """Objects of `size` bytes of random pixels, each of its own UID."""
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = []
    for number in range(count):
        dataset = dcmread(MR)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.Columns = 512 if size < 1 << 24 else 6144
        dataset.Rows = size // (2 * dataset.Columns)
        dataset.PixelData = random.bytes(2 * dataset.Rows * dataset.Columns)
        paths.append(folder / f"{number}.dcm")
        dataset.save_as(paths[-1])
    return paths


def send(port: int, paths: list[Path]) -> float:
    """Seconds that storescu takes, from its start to its end."""
    began = time.perf_counter()
    subprocess.run([str(STORESCU), "-aec", "LCMEM", "127.0.0.1", str(port), *map(str, paths)], check=True, capture_output=True)
    return time.perf_counter() - began


def megabytes(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def remade(paths: list[Path]) -> None:
    """New UIDs: an object that the gateway knows would cost it less."""
    for path in paths:
        dataset = dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        work = Path(name)
        paths = make_objects(work / "objects", 60, 512 << 10)
        large = make_objects(work / "large", 1, 72 << 20)
        gateway, port, _ = start_receiver(work / "gateway", ReceiveSettings(port=0, calling_aets=("STORESCU",)))
        (work / "storescp").mkdir()
        with tempfile.TemporaryFile() as sink:
            other_port = 11119
            command = [str(STORESCP), "-od", str(work / "storescp"), str(other_port)]
            storescp = subprocess.Popen(command, stdout=sink, stderr=sink)
        time.sleep(1)
        seconds: dict[str, list[float]] = {"gateway": [], "storescp": []}
        one: dict[str, list[float]] = {"gateway": [], "storescp": []}
        idle = peak = 0.0
        try:
            for turn in range(rounds):
                order = [("gateway", port), ("storescp", other_port)]
                for who, at in order if turn % 2 else order[::-1]:
                    remade(paths)
                    seconds[who].append(send(at, paths))
            idle = megabytes(gateway.pid, "VmRSS")
            for _ in range(3):
                Path(f"/proc/{gateway.pid}/clear_refs").write_text("5")  # the peak begins anew
                remade(large)
                one["gateway"].append(send(port, large))
                peak = max(peak, megabytes(gateway.pid, "VmHWM"))
                one["storescp"].append(send(other_port, large))
        finally:
            gateway.terminate()
            storescp.kill()
    for what, found in (("60 objects of 512 KB", seconds), ("one of 72 MB", one)):
        for who, values in found.items():
            print(f"{what:22} {who:10} median {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    print(f"receiving process: {idle:.0f} MB idle after these, {peak:.0f} MB at the peak of 72 MB ({peak - idle:+.0f})")


if __name__ == "__main__":
    main()
