"""Decode mutated files of every format under `--isolate`: nothing crashes, hangs, grows or prints.

    python benchmarks/fuzz.py [--mutations 10000] [--minutes M] [--here] [--pydicom] [--only TEXT] [--every N] [--keep FOLDER]
                              [FILE or FOLDER ...]

The fixtures are generated: one for each raster format and feature (`raster_sweep`), and one for each DICOM feature, transfer syntax
and color code (`dicom_sweep`); programs that are not installed leave theirs out. Files and folders on the command line are fixtures
too, and with --pydicom pydicom's test files. Each is changed by one to four mutations: bits flipped, bytes set to extremes, parts
cut out, repeated, overwritten or replaced by parts of another fixture, the end cut off; and fields of the format itself, where a
decoder believes what it reads: lengths, sizes and counts of DICOM elements, PNG chunks (whose CRC is made right again), JPEG
segments, TIFF directories, boxes and RIFF chunks.

A mutated file may decode: a changed pixel is still an image. A fault is whatever is neither frames nor an ImageError with a
stable reason and a message of one line; an answer of the decoding process that is not one; an answer that comes later than the
limit on time; a decoding process that takes more memory than its limit; growth of this process; a byte on stderr. With --here each
file is decoded in this process too, where a crash ends the run, and both must come to the same. Decoders that crashed or were ended
are not faults, since that is what the isolation is for, but they are counted, and kept with the faults in --keep.

Exit codes: 0 no fault, 1 a fault.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.formats import Limits
from lcmem_onnx.runtime.images.image import ImageFile, open_image
from lcmem_onnx.runtime.images.sandbox import WALL_FACTOR, DecoderPool, SandboxedImageFile

LIMITS = Limits(max_pixels=1 << 22, max_frames=256, max_inflated_bytes=1 << 24, max_seconds=5, max_memory_bytes=1 << 30)
SIZE = 64
FRAMES = 3
"""Frames of an image that are asked for: the first, the middle one, the last."""
GRACE_SECONDS = 5.0
"""A busy machine takes for ending a process and starting another."""
GROWTH_MB = 200
"""What this process may grow by in a whole run."""
HEADER = 1024
EXTREMES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 0x7FFFFFFF, 0x80000000,
            0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
ENDED = (Reason.DECODER_FAILED, Reason.TIMED_OUT)
LIMITED = (*ENDED, Reason.OUT_OF_MEMORY)
"""What only a decoding process comes to, by its limits on time and memory."""
NO_ANSWER = "its decoder answered with something"
"""What the parent says of answers that are not valid: then the child, which is our own code, has a fault."""
PYDICOM_BYTES = 1 << 20
"""Larger ones of pydicom's test files are left out."""


@dataclass(frozen=True)
class Fixture:
    """A file to start from."""

    name: str
    file: str
    """Its name on disk, of which the suffix is a hint."""
    data: bytes = field(repr=False)


# -- fixtures ------------------------------------------------------------------------------------------------------------


def generated(every: int = 1) -> Iterator[Fixture]:
    """One file a format and feature; of these each so many."""
    yield from _raster(every)
    yield from _dicom(every)


def _raster(every: int) -> Iterator[Fixture]:
    import raster_sweep

    for combination in islice(raster_sweep.combinations(), 0, None, every):
        try:
            yield Fixture(combination.name, f"x.{combination.suffix}", combination.write())
        except (FileNotFoundError, subprocess.CalledProcessError):  # no ImageMagick, or one without this format
            continue


def _dicom(every: int) -> Iterator[Fixture]:
    """Each feature in explicit little endian; the first feature that a syntax can hold in each other syntax; each color code."""
    import dicom_sweep

    features = list(dicom_sweep.features())
    with tempfile.TemporaryDirectory() as folder:
        dcmtk = dicom_sweep.Dcmtk(Path(folder))
        for feature in features[::every]:
            yield Fixture(f"dicom {feature.name}", "x.dcm", dicom_sweep.native(feature, dcmtk).read_bytes())
        for syntax in dicom_sweep.SYNTAXES[::every]:
            for feature in features:
                try:
                    path = syntax.encode(feature, dcmtk) if feature.lossy or not syntax.lossy else None
                except FileNotFoundError:  # no DCMTK
                    path = None
                if path is not None:
                    yield Fixture(f"dicom {syntax.name}", "x.dcm", path.read_bytes())
                    break
        for name, dataset, _ in islice(dicom_sweep.colour_codes(), 0, None, every):
            path = Path(folder) / "code.dcm"
            dicom_sweep.write(dataset, path)
            yield Fixture(f"dicom {name}", "x.dcm", path.read_bytes())


def pydicom_files() -> Iterator[Fixture]:
    """pydicom's test files with pixels."""
    import pydicom

    for path in sorted(path for path in (Path(pydicom.__file__).parent / "data").rglob("*") if path.is_file()):
        data = path.read_bytes()
        if len(data) <= PYDICOM_BYTES and path.suffix not in (".py", ".pyc", ".txt"):
            try:
                open_image(data, LIMITS, "x.dcm")
            except ImageError:
                continue
            yield Fixture(f"pydicom {path.name}", "x.dcm", data)


def given(paths: Iterable[Path]) -> Iterator[Fixture]:
    """Files, and all files in folders."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield Fixture(str(file.relative_to(path.parent)), file.name, file.read_bytes())


# -- mutations -----------------------------------------------------------------------------------------------------------


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes, most often one: after several in a header nothing behind it is reached.

    Args:
        data: the fixture.
        other: another one, to take parts of.
    """
    changed = bytearray(data)
    fields = _fields(data)
    chunks = data.startswith(b"\x89PNG")
    for _ in range(int(rng.choice((1, 2, 3, 4), p=(0.6, 0.2, 0.1, 0.1)))):
        if len(changed) < 16:
            break
        if fields is not None and rng.random() < 0.5:
            _set_field(changed, fields, rng)
        else:
            _general(changed, other, rng)
    return _with_checksums(changed) if chunks and rng.random() < 0.8 else bytes(changed)


def _general(changed: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """A change that knows nothing of the format; two in five of them near the beginning."""
    at = int(rng.integers(0, min(len(changed), HEADER) if rng.random() < 0.4 else len(changed)))
    length = int(rng.integers(1, 65))
    kind = int(rng.integers(0, 10))
    if kind <= 2:
        changed[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == 3:
        changed[at] = int(rng.integers(0, 256))
    elif kind == 4:
        _put(changed, at, int(rng.choice((2, 4))), rng)
    elif kind == 5:
        del changed[at : at + length]
    elif kind == 6:
        changed[at:at] = changed[at : at + length] * int(rng.integers(1, 9))
    elif kind == 7:
        changed[at : at + length] = rng.bytes(length)
    elif kind == 8:
        start = int(rng.integers(0, max(1, len(other))))
        changed[at : at + length] = other[start : start + int(rng.integers(1, 257))]
    else:
        del changed[max(at, 8) :]


def _put(changed: bytearray, at: int, width: int, rng: np.random.Generator) -> None:
    """Set a number, in either byte order, to an extreme, or move it by a little."""
    order = "little" if rng.random() < 0.5 else "big"
    now = int.from_bytes(changed[at : at + width], order)
    value = int(rng.choice(EXTREMES)) if rng.random() < 0.7 else now + int(rng.integers(-4, 5))
    changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)


Places = list[tuple[int, int]]
"""Where fields lie: (offset, width) each."""


def _fields(data: bytes) -> Places | None:
    """Numbers that decoders go by; None where the format is not known here."""
    if data[128:132] == b"DICM":
        return _dicom_fields(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_fields(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_fields(data)
    if data.startswith(b"\x89PNG"):
        return [(at - 4, 4) for at in _found(rb"[A-Za-z]{4}", data, 12)] + [(16 + at, 1) for at in range(13)]
    if data.startswith(b"RIFF"):
        return [(at + 4, 4) for at in _found(rb"RIFF|VP8[ LX]|ALPH|ANIM|ANMF|EXIF|ICCP|XMP ", data)] + [(24, 4), (26, 4)]
    if data[4:8] in (b"ftyp", b"jP  ", b"JXL "):
        boxes = [at for at in _found(rb"[a-z][A-Za-z0-9 ]{3}", data, 4) if int.from_bytes(data[at - 4 : at], "big") <= len(data)]
        return [(at - 4, 4) for at in boxes] + [(at + 4 + 4 * step, 4) for at in boxes for step in range(4)]
    if data[:2] in (b"BM", b"GI"):
        return [(at, 2) for at in range(6, 54, 2)]
    if data[:1] == b"P":
        return [(found.start(), 1) for found in re.finditer(rb"[0-9]", data[:64])]
    return None


def _found(pattern: bytes, data: bytes, least: int = 0) -> list[int]:
    return [found.start() for found in re.finditer(pattern, data) if found.start() >= least]


def _dicom_fields(data: bytes) -> Places:
    """Lengths and values of elements, by what looks like one: the groups of images, lookup tables, frames and pixels."""
    places = []
    for found in re.finditer(rb"(?:[\x02\x08\x20\x28]\x00|\x00[\x02\x08\x20\x28]|\xe0\x7f|\xfe\xff|\x00\x52)[\x00-\xff]{2}", data):
        at = found.end()
        explicit = data[at : at + 2].isalpha()
        if explicit:  # its VR, the length in 2 or 4 bytes, and the first values behind either
            places += [(at, 2), (at + 2, 2), (at + 4, 4), (at + 4, 2), (at + 4, 2), (at + 6, 2), (at + 8, 2), (at + 8, 2)]
        else:
            places += [(at, 4), (at + 4, 2), (at + 4, 2), (at + 6, 2)]
    return places


def _jpeg_fields(data: bytes) -> Places:
    """Lengths of segments; precision, size, components and sampling of frames; tables of scans."""
    places = []
    for found in re.finditer(rb"\xff[\xc0-\xfe]", data):
        places.append((found.end(), 2))
        if data[found.start() + 1] in (*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDD, 0xF7):
            places += [(found.end() + 2 + step, 1) for step in range(16)]
    return places


def _tiff_fields(data: bytes) -> Places:
    """Entries of the first directory: tags, types, counts, values."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    if start + 2 > len(data):
        return [(4, 4)]
    (count,) = struct.unpack_from(order + "H", data, start)
    places = [(4, 4), (start, 2)]
    for entry in range(start + 2, start + 2 + 12 * min(count, 64), 12):
        places += [(entry, 2), (entry + 2, 2), (entry + 4, 4), (entry + 8, 4), (entry + 8, 2)]
    return places


def _set_field(changed: bytearray, places: Places, rng: np.random.Generator) -> None:
    if not places:
        return
    at, width = places[int(rng.integers(0, len(places)))]
    if at + width <= len(changed):
        _put(changed, at, width, rng)


def _with_checksums(data: bytearray) -> bytes:
    """A PNG whose chunks have the CRC that fits what is in them, so that more than the checksum is tried."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


# -- a run ---------------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of one fixture's mutations: how many decoded, how many errors by reason, and faults."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    most_mb: float = 0.0
    """The most memory that a decoding process had, above what it began with."""


Opener = Callable[[bytes, str], ImageFile | SandboxedImageFile]


def tried(opener: Opener, data: bytes, name: str) -> tuple[str, str, float]:
    """Open a file and ask for some of its frames.

    Returns:
        What became of it: "decoded", "decoded in part" or a reason; what is wrong with that, or ""; the memory that was taken, MB.
    """
    image: ImageFile | SandboxedImageFile | None = None
    memory = 0.0
    errors: list[ImageError] = []
    wrong = ""
    asked = 1
    try:
        image = opener(data, name)
        frames = sorted({0, image.frames // 2, image.frames - 1})[:FRAMES]
        asked = len(frames)
        for number in frames:
            try:
                views = image.views(number, SIZE)
                if not views or any(view.shape != (SIZE, SIZE, 3) or view.dtype != np.uint8 for view in views):
                    wrong = f"frame {number} has views of another shape"
            except ImageError as error:
                errors.append(error)
            memory = max(memory, _memory_of(image))
    except ImageError as error:
        errors.append(error)
    except Exception as error:  # noqa: BLE001  # that there is none is what is tried
        return "fault", f"{type(error).__name__}: {error}", memory
    finally:
        if image is not None:
            image.close()
    for error in errors:
        if not isinstance(error.reason, Reason) or "\n" in str(error) or not str(error):
            wrong = f"an error that is not one line: {error!r}"
        elif str(error).startswith(NO_ANSWER):
            wrong = str(error)
    if not errors:
        return "decoded", wrong, memory
    return ("decoded in part" if len(errors) < asked else str(errors[0].reason.value)), wrong, memory


def _memory_of(image: ImageFile | SandboxedImageFile) -> float:
    """The most address space that an image's process has had, MB; 0 where it has none of its own."""
    child = getattr(image, "_child", None)
    try:
        status = Path(f"/proc/{child.process}/status").read_text(encoding="ascii") if child else ""
    except OSError:  # it ended
        return 0.0
    found = re.search(r"VmPeak:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def run(
    fixtures: list[Fixture],
    mutations: int,
    seed: int,
    minutes: float | None = None,
    keep: Path | None = None,
    say: Callable[[str], None] | None = None,
    limits: Limits = LIMITS,
    here: bool = False,
) -> dict[str, Tally]:
    """Try mutations of each fixture in turn: a round of a few for each at a time, until there are enough or the time is up."""

    def opened_here(data: bytes, name: str) -> ImageFile:
        return open_image(data, limits, name)

    tallies = {fixture.name: Tally() for fixture in fixtures}
    generators = {fixture.name: np.random.default_rng([seed, number]) for number, fixture in enumerate(fixtures)}
    began, round_size = time.monotonic(), min(50, mutations)
    with DecoderPool(limits) as decoders, _Stderr() as printed:
        start_mb = _resident()
        base_mb = _baseline(decoders, fixtures)
        for done in range(0, mutations, round_size):
            for number, fixture in enumerate(fixtures):
                tally, rng = tallies[fixture.name], generators[fixture.name]
                for _ in range(min(round_size, mutations - done)):
                    other = fixtures[(number + int(rng.integers(-3, 4))) % len(fixtures)]
                    data = mutated(fixture.data, other.data, rng)
                    start = time.monotonic()
                    outcome, wrong, memory = tried(decoders.open, data, fixture.file)
                    taken = time.monotonic() - start
                    if here:
                        its_outcome, its_wrong, _ = tried(opened_here, data, fixture.file)
                        wrong = wrong or its_wrong
                        if its_outcome != outcome and outcome not in LIMITED:
                            wrong = wrong or f"{outcome} in a process of its own, {its_outcome} here"
                    tally.outcomes[outcome] += 1
                    tally.slowest = max(tally.slowest, taken)
                    tally.most_mb = max(tally.most_mb, memory - base_mb)
                    if taken > (FRAMES + 1) * WALL_FACTOR * limits.max_seconds + GRACE_SECONDS:
                        wrong = wrong or f"it took {taken:.0f} s"
                    if memory - base_mb > (limits.max_memory_bytes >> 20) + 1:
                        wrong = wrong or f"it took {memory - base_mb:.0f} MB"
                    if text := printed.new():
                        wrong = wrong or f"on stderr: {text[:200]!r}"
                    if wrong:
                        tally.faults.append(wrong)
                        if say:
                            say(f"fault: {fixture.name}: {wrong}")
                    if keep and (wrong or outcome in ENDED):
                        _kept(keep, fixture, outcome, data)
                if minutes is not None and time.monotonic() - began > 60 * minutes:
                    return tallies
            if say:
                seconds, grown = time.monotonic() - began, _resident() - start_mb
                say(f"{done + round_size} mutations of each, {seconds:.0f} s, {grown:+.0f} MB here")
        if _resident() - start_mb > GROWTH_MB:
            tallies[fixtures[-1].name].faults.append(f"this process has grown by {_resident() - start_mb:.0f} MB")
    return tallies


class _Stderr:
    """A `with` in which this process's stderr, that of C libraries too, goes to a file that is looked at."""

    def __enter__(self) -> _Stderr:
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile()
        self._before = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *error: object) -> None:
        os.dup2(self._before, 2)
        os.close(self._before)
        self._file.close()

    def new(self) -> bytes:
        """What was printed since the last call."""
        if not os.fstat(2).st_size:
            return b""
        self._file.seek(0)
        text = self._file.read()
        self._file.seek(0)
        self._file.truncate()
        return text


def _baseline(decoders: DecoderPool, fixtures: list[Fixture]) -> float:
    """Address space of a decoding process before it decodes anything, MB: what the limit is added to."""
    statm = Path(f"/proc/{decoders._process.pid}/statm") if decoders._process else None
    if statm is None:
        decoders.open(fixtures[0].data, fixtures[0].file).close()
        return _baseline(decoders, fixtures)
    return int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize() / 2**20


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20


def _kept(folder: Path, fixture: Fixture, outcome: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{outcome} {fixture.name}").strip("-")
    (folder / f"{name}-{zlib.crc32(data):08x}{Path(fixture.file).suffix}").write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE or FOLDER", help="further fixtures")
    parser.add_argument("--mutations", type=int, default=10_000, help="of each fixture")
    parser.add_argument("--minutes", type=float, help="stop after so many, with what is done")
    parser.add_argument("--here", action="store_true", help="decode in this process too, and compare")
    parser.add_argument("--pydicom", action="store_true", help="pydicom's test files as fixtures too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="fixtures whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="each so many of the generated fixtures")
    parser.add_argument("--keep", type=Path, help="folder for files that are faults, or that ended their decoder")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    fixtures = [*generated(options.every), *(pydicom_files() if options.pydicom else ()), *given(options.files)]
    fixtures = list({one.name: one for one in fixtures if options.only in one.name}.values())
    print(f"{len(fixtures)} fixtures, seed {options.seed}", flush=True)
    tallies = run(
        fixtures,
        options.mutations,
        options.seed,
        options.minutes,
        options.keep,
        lambda line: print(line, flush=True),
        here=options.here,
    )
    print("\n| fixture | mutations | decoded | errors, by reason | slowest, s | memory, MB | faults |\n" + "| --- " * 7 + "|")
    for name, tally in tallies.items():
        reasons = ", ".join(f"{count} {what}" for what, count in tally.outcomes.most_common() if what != "decoded")
        print(f"| {name} | {tally.outcomes.total()} | {tally.outcomes['decoded']} | {reasons} | {tally.slowest:.1f} | "
              f"{tally.most_mb:.0f} | {len(tally.faults)} |")  # fmt: skip
    every: Counter[str] = sum((tally.outcomes for tally in tallies.values()), Counter())
    faults = sum(len(tally.faults) for tally in tallies.values())
    print(f"\n{every.total()} mutations of {len(fixtures)} fixtures: {faults} faults")
    print(", ".join(f"{count} {what}" for what, count in every.most_common()))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
