"""Mutated DICOM objects, decoded here and in processes of their own: what becomes of them, and that nothing crashes or hangs.

    python benchmarks/fuzz_dicom.py [--objects 2000] [--seed 0] [--sweep]

Each object is one of pydicom's test files (with --sweep: one of the generated objects of dicom_sweep.py) with one to four
mutations: bytes flipped, set to an extreme, cut out, repeated, the end cut off, a length or a number in the header replaced. It is
opened as a scan opens it and at most three of its frames are rendered. An object that decodes nevertheless is no failure: a picture
with a changed pixel is still a picture, and is judged as one. What counts: no error other than a PictureError, no frame that takes
longer than the limit, and, in this process, no crash.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from lcmem_onnx.runtime.errors import PictureError
from lcmem_onnx.runtime.files import Limits
from lcmem_onnx.runtime.isolation import IsolatedPicture, Nursery
from lcmem_onnx.runtime.pictures import Picture, open_picture

LIMITS = Limits(max_pixels=1 << 22, max_frames=256, max_inflated_bytes=1 << 24, max_seconds=10, max_memory_bytes=1 << 30)
LARGEST = 1 << 20
SIZE = 64
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
KINDS = (0.35, 0.2, 0.2, 0.1, 0.05, 0.05, 0.05)
EXTREMES = (b"\0\0", b"\xff\xff", b"\x00\x80", b"\x01\x00")


def sources() -> list[bytes]:
    """pydicom's test files with pixels, up to `LARGEST` bytes, by name."""
    found = []
    for path in sorted(path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file()):
        if path.stat().st_size > LARGEST:
            continue
        try:
            has_pixels = any(word in pydicom.dcmread(path, force=True) for word in PIXELS)
        except Exception:  # noqa: BLE001  # not DICOM: licences and lists are there too
            continue
        if has_pixels:
            found.append(path.read_bytes())
    return found


def generated() -> list[bytes]:
    """The objects of dicom_sweep.py, which have every lookup table, palette and depth; native ones and codestreams."""
    import dicom_sweep

    found = []
    for dataset in (
        *(feature.dataset for feature in dicom_sweep.features()),
        *(dataset for _, dataset, _ in dicom_sweep.colour_codes()),
    ):
        file = io.BytesIO()
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
        found.append(file.getvalue())
    return found


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes, two in five of them in the first 2 KiB, where the header is."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if len(changed) < 200:
            break
        at = int(rng.integers(132, min(len(changed), 2048) if rng.random() < 0.4 else len(changed)))
        match int(rng.choice(7, p=KINDS)):
            case 0:
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                changed[at] = int(rng.integers(0, 256))
            case 2:
                changed[at : at + 2] = EXTREMES[int(rng.integers(0, len(EXTREMES)))]
            case 3:
                changed[at : at + 4] = struct.pack("<I", int(rng.integers(0, 1 << 32)))
            case 4:
                del changed[at : at + int(rng.integers(1, 65))]
            case 5:
                changed[at:at] = changed[at : at + int(rng.integers(1, 65))] * int(rng.integers(1, 9))
            case _:
                del changed[at:]
    return bytes(changed)


def objects(count: int, seed: int, files: list[bytes] | None = None) -> Iterator[bytes]:
    """The same ones for the same seed."""
    files = files or sources()
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield mutated(files[int(rng.integers(0, len(files)))], rng)


def outcome(data: bytes, opener: Callable[[bytes], Picture | IsolatedPicture]) -> str:
    """`decoded`, `decoded in part`, or the reason of the first error."""
    try:
        picture = opener(data)
    except PictureError as error:
        return str(error.reason.value)
    reasons = []
    frames = sorted({0, picture.frames // 2, picture.frames - 1})
    for number in frames:
        try:
            picture.views(number, SIZE)
        except PictureError as error:
            reasons.append(str(error.reason.value))
    picture.close()
    if not reasons:
        return "decoded"
    return "decoded in part" if len(reasons) < len(frames) else reasons[0]


def run(name: str, count: int, seed: int, files: list[bytes], opener: Callable[[bytes], Picture | IsolatedPicture]) -> Counter[str]:
    counts: Counter[str] = Counter()
    slowest, began = 0.0, time.monotonic()
    for data in objects(count, seed, files):
        start = time.monotonic()
        counts[outcome(data, opener)] += 1
        slowest = max(slowest, time.monotonic() - start)
    print(f"{name}: {count} objects, seed {seed}, {time.monotonic() - began:.0f} s, slowest {slowest:.2f} s")
    for what, number in counts.most_common():
        print(f"  {what:16} {number}")
    sys.stdout.flush()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", action="store_true", help="start from the objects of dicom_sweep.py")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    files = generated() if arguments.sweep else sources()
    print(f"{len(files)} files to start from")
    here = run("in this process", arguments.objects, arguments.seed, files, lambda data: open_picture(data, LIMITS, "x.dcm"))
    with Nursery(LIMITS) as nursery:
        there = run("isolated", arguments.objects, arguments.seed, files, lambda data: nursery.open(data, "x.dcm"))
    for what in sorted(here.keys() | there.keys()):
        if here[what] != there[what]:
            print(f"differs: {what}: {here[what]} here, {there[what]} isolated")


if __name__ == "__main__":
    main()
