"""Compare our rendering of generated DICOM objects with DCMTK's, feature by feature and transfer syntax by transfer syntax.

    python benchmarks/dicom_sweep.py [--only TEXT] [--list]

Each feature is a small object: a photometric interpretation, a depth, a sign, a lookup table, a window, padding, functional
groups, many frames. It is written in every transfer syntax that is legal for it, and the first rendering of each frame is compared
with what DCMTK's dcmj2pnm draws of the same file. DCMTK itself converts to implicit, big endian, deflated, RLE, lossless JPEG and
JPEG-LS (Debian: `apt-get install dcmtk`); imagecodecs encodes lossy JPEG, JPEG 2000 and HTJ2K.

Where DCMTK cannot draw an object, it draws an equal one that it can: of JPEG 2000, HTJ2K and frame-wise deflate the native object;
of functional groups a flat object for each frame; of a segmented palette the expanded one; of floats the same figures as whole
numbers. Padding, which DCMTK draws, must be black.

Differences are in levels of 255. Lossless and native syntaxes may differ by 1, where two programs round differently.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from lcmem_onnx.runtime.errors import ImageError
from lcmem_onnx.runtime.images.image import open_image
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence

LEVELS = 1
LOSSY_LEVELS = 6
"""Of lossy JPEG, between DCMTK's decoder and ours."""
CODED_LEVELS = 24
"""Of lossy JPEG 2000, between the object before coding and after; on average no more than `CODED_MEAN`."""
CODED_MEAN = 2.5
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
ROWS, COLUMNS = 38, 50

Values = NDArray[Any]
Reference = Callable[["Dcmtk"], list[NDArray[np.int64]]]


@dataclass(frozen=True)
class Feature:
    """An object in explicit VR, little endian.

    Attributes:
        look: options with which dcmj2pnm draws it.
        reference: what its frames should look like, where DCMTK cannot draw it itself.
        black: where padding is, in each frame.
        lossy: whether its values may change a little: not where a table or a narrow window would make much of it.
    """

    name: str
    dataset: FileDataset
    look: tuple[str, ...] = ("-W",)
    reference: Reference | None = None
    black: Values | None = None
    lossy: bool = False
    levels: int = LEVELS


@dataclass(frozen=True)
class Outcome:
    """What became of a feature in a syntax.

    Attributes:
        apart: the largest difference in levels; None where frames differ in number or size, or could not be compared.
        mean: the mean one. allowed: the largest that is.
        error: why we refuse the object. untold: why DCMTK could not say what it looks like.
    """

    feature: str
    syntax: str
    apart: int | None = None
    mean: float = 0.0
    allowed: int = LEVELS
    error: str = ""
    untold: str = ""

    @property
    def kind(self) -> str:
        """In one word: equal, close, refused (with an error, so not in silence), or different."""
        if self.error:
            return "refused"
        if self.apart is None or self.mean > CODED_MEAN or self.apart > self.allowed:
            return "different"
        return "equal" if self.apart == 0 else "close"


class NotDrawnError(Exception):
    """DCMTK refuses the object, so there is nothing to compare with."""


class Dcmtk:
    """DCMTK's programs, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def convert(self, program: str, source: Path, *options: str) -> Path | None:
        """Convert a file; None where the program refuses."""
        target = self.folder / "converted.dcm"
        target.unlink(missing_ok=True)
        subprocess.run([program, "-q", *options, str(source), str(target)], capture_output=True, check=False, timeout=60)
        return target if target.exists() else None

    def draw(self, source: Path, look: tuple[str, ...]) -> list[NDArray[np.int64]]:
        """Draw all frames, (rows, columns, 3) each.

        Raises:
            NotDrawnError: DCMTK refuses the file.
        """
        for old in self.folder.glob("drawn*"):
            old.unlink()
        syntax = pydicom.dcmread(source, stop_before_pixels=True).file_meta.TransferSyntaxUID
        program = "dcml2pnm" if syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless) else "dcmj2pnm"
        command = [program, "-q", "-O", "+Fa", "+op", *look, str(source), str(self.folder / "drawn")]
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        found = sorted(self.folder.glob("drawn*"), key=lambda path: int(path.suffixes[0][1:]))
        if not found:
            raise NotDrawnError
        return [rgb(np.asarray(Image.open(path)).astype(np.int64)) for path in found]

    def drawn(self, dataset: FileDataset, look: tuple[str, ...]) -> list[NDArray[np.int64]]:
        """Write an object, and draw it."""
        path = self.folder / "reference.dcm"
        write(dataset, path)
        return self.draw(path, look)


def rgb(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)


def write(dataset: FileDataset, path: Path) -> None:
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def make(values: Values, photometric: str = "MONOCHROME2", *, stored: int = 0, frames: int = 0, **elements: Any) -> FileDataset:
    """An object with these stored values: (rows, columns), with samples last, with frames first where there are `frames`."""
    shape = values.shape[1:] if frames else values.shape
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = shape[2] if len(shape) > 2 else 1
    if dataset.SamplesPerPixel > 1:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if frames:
        dataset.NumberOfFrames = frames
    pixels = values.tobytes()
    dataset.add_new("PixelData", "OW", pixels + bytes(len(pixels) % 2))
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def scene(low: float, high: float, dtype: str, rows: int = ROWS, columns: int = COLUMNS, phase: float = 0.0) -> Values:
    """A smooth image that takes both ends of its range."""
    y, x = np.mgrid[:rows, :columns]
    waves = np.sin(x / 6 + phase) + np.cos(y / 7 - phase) + (x + y) / (rows + columns)
    share = (waves - waves.min()) / (waves.max() - waves.min())
    return np.rint(low + share * (high - low)).astype(dtype)


def colours(phase: float = 0.0, top: int = 255) -> Values:
    dtype = "uint8" if top < 256 else "uint16"
    return np.stack([scene(0, top, dtype, phase=phase + shift) for shift in (0.0, 1.7, 4.1)], axis=2)


def table(entries: Values, first: int, bits: int, vr: str = "OW", packed: bool = False) -> Sequence:
    """A sequence with a lookup table; `packed`: 8-bit entries two to a word."""
    item = Dataset()
    described = [len(entries) % 0x10000, first % 0x10000, bits]
    item.add_new("LUTDescriptor", "US", described)
    if packed:
        octets = entries.astype("u1").tobytes()
        item.add_new("LUTData", "OW", octets + bytes(len(octets) % 2))
    else:
        words = entries.astype("<u2")
        item.add_new("LUTData", vr, words.tobytes() if vr in ("OW", "UN") else words.tolist())
    return Sequence([item])


def curve(count: int, bits: int) -> Values:
    """Entries that rise as a square root does, to the top of their bits."""
    return np.rint(np.sqrt(np.linspace(0, 1, count)) * (2**bits - 1))


def with_elements(dataset: FileDataset, *elements: tuple[str, str, Any]) -> FileDataset:
    for keyword, vr, value in elements:
        dataset.add_new(keyword, vr, value)
    return dataset


# -- features --------------------------------------------------------------------------------------------------------------


def depths() -> Iterator[Feature]:
    """Bits, signs and polarity, without any window."""
    shallow = [("uint8", 8), ("uint8", 6), ("int8", 8)]
    deep = [("uint16", 9), ("uint16", 10), ("uint16", 12), ("int16", 12), ("uint16", 14), ("uint16", 16), ("int16", 16)]
    for dtype, stored in (*shallow, *deep, ("uint32", 32), ("int32", 32), ("uint32", 20)):
        signed = dtype.startswith("i")
        low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
        if stored > 8:
            low, high = low * 3 // 4, high * 3 // 4
        for photometric in ("MONOCHROME1", "MONOCHROME2"):
            data = make(scene(low, high, dtype), photometric, stored=stored)
            whole = stored <= 8 and not signed
            levels = 4 if stored == 6 else LEVELS  # DCMTK shifts to 8 bits: its white is 252
            yield Feature(
                f"{photometric} {stored} bits in {dtype}", data, ("-W",) if whole else ("+Wm",), lossy=True, levels=levels
            )
    shifted = make(scene(0, 4095, "uint16") << 4, stored=12, HighBit=15)
    yield Feature("12 bits stored at the top of 16", shifted, ("+Wm",))
    shifted = make(scene(0, 4095, "uint16") << 4, stored=12, HighBit=15, WindowCenter=1500, WindowWidth=1200)
    yield Feature("12 bits stored at the top of 16 with a window", shifted, ("+Wi", "1"))
    shifted = make(scene(-2048, 2047, "int16") << 2, stored=12, HighBit=13, WindowCenter=-500, WindowWidth=1200)
    yield Feature("12 signed bits stored in the middle of 16 with a window", shifted, ("+Wi", "1"))
    for photometric, shape in (("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")):
        data = make(scene(0, 4095, "uint16"), photometric, stored=12, PresentationLUTShape=shape)
        yield Feature(f"{photometric}, presentation {shape}", data, ("+Wm",))
    noise = np.random.default_rng(0).integers(0, 16, (ROWS, COLUMNS)).astype("uint16") << 12
    yield Feature("12 bits with others above", make(scene(0, 4095, "uint16") | noise, stored=12), ("+Wm",))


def windows() -> Iterator[Feature]:
    deep, one = scene(0, 4095, "uint16"), ("+Wi", "1")
    for centre, width in ((2000, 1000), (2000.5, 777.25), (500, 3000), (4000, 100), (2048, 1), (0, 9000)):
        data = make(deep, stored=12, WindowCenter=centre, WindowWidth=width)
        yield Feature(f"window {centre}/{width}", data, one, lossy=width >= 1000)
    yield Feature("MONOCHROME1 with a window", make(deep, "MONOCHROME1", stored=12, WindowCenter=2000, WindowWidth=3000), one)
    yield Feature("window of 8 bits", make(scene(0, 255, "uint8"), WindowCenter=100, WindowWidth=90), one)
    yield Feature("window of signed values", make(scene(-900, 900, "int16"), stored=12, WindowCenter=-100, WindowWidth=800), one)
    yield Feature("the first of windows", make(deep, stored=12, WindowCenter=[1500, 9], WindowWidth=[2000, 9]), one)
    sigmoid = make(deep, stored=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="SIGMOID")
    yield Feature("SIGMOID", sigmoid, (*one, "+Wfs"))
    exact = make(deep, stored=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    same = make(deep, stored=12, WindowCenter=2000.5, WindowWidth=1001)
    yield Feature("LINEAR_EXACT", exact, reference=lambda dcmtk: dcmtk.drawn(same, one))
    for name, centre, width in (("comma", "2000,5", "1000,0"), ("second usable", "0\\2000.5", "0\\1000"),
                                ("text first", "none\\2000.5", "400\\1000"), ("empty first", "\\2000.5", "\\1000")):  # fmt: skip
        odd = make(deep, stored=12)
        odd._dict[pydicom.tag.Tag("WindowCenter")] = raw(0x00281050, centre)
        odd._dict[pydicom.tag.Tag("WindowWidth")] = raw(0x00281051, width)
        plain = make(deep, stored=12, WindowCenter=2000.5, WindowWidth=1000)
        yield Feature(f"odd window: {name}", odd, reference=lambda dcmtk, plain=plain: dcmtk.drawn(plain, one))  # type: ignore[misc]


def raw(tag: int, text: str) -> pydicom.dataelem.RawDataElement:
    value = text.encode() + b" " * (len(text) % 2)
    return pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), "DS", len(value), value, 0, False, True)


def modalities() -> Iterator[Feature]:
    deep, shallow = scene(0, 4095, "uint16"), scene(0, 255, "uint8")
    one, whole = ("+Wi", "1"), make(deep, stored=12)
    for slope, intercept in ((1, -1024), (0.5, 3.25), (-1, 4095), (20, -9000)):
        rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
        yield Feature(f"rescale {slope}/{intercept}", make(deep, stored=12, **rescale), ("+Wm",))
        window = {"WindowCenter": slope * 2000 + intercept, "WindowWidth": abs(slope) * 2000}
        yield Feature(f"rescale {slope}/{intercept} with a window", make(deep, stored=12, **rescale, **window), one)
    # DCMTK rounds modality values to whole numbers: it draws the object without its rescale, and the window that is the same there.
    small = {"RescaleSlope": "0.001", "RescaleIntercept": "7"}
    yield Feature("rescale 0.001/7", make(deep, stored=12, **small), reference=lambda dcmtk: dcmtk.drawn(whole, ("+Wm",)))
    data = make(deep, stored=12, **small, WindowCenter="9", WindowWidth="2", VOILUTFunction="LINEAR_EXACT")
    same = make(deep, stored=12, WindowCenter=2000.5, WindowWidth=2001)
    yield Feature("rescale 0.001/7 with a window", data, reference=lambda dcmtk: dcmtk.drawn(same, one))
    yield Feature("rescale of 8 bits", make(shallow, RescaleSlope=2, RescaleIntercept=-100), ("-W",))
    yield Feature("rescale of signed", make(scene(-2000, 2000, "int16"), RescaleSlope=2, RescaleIntercept=7), ("+Wm",))
    yield from tables("ModalityLUTSequence", "modality LUT", ("+Wm",), ("-W",))
    for name, useless in (("without elements", Sequence([Dataset()])), ("without entries", emptied())):
        rescale = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 3000, "WindowWidth": 3000}
        odd, plain = make(deep, stored=12, ModalityLUTSequence=useless, **rescale), make(deep, stored=12, **rescale)
        yield Feature(f"modality LUT: {name}", odd, reference=lambda dcmtk, plain=plain: dcmtk.drawn(plain, one))  # type: ignore[misc]
    for name, slope in (("0", 0), ("empty", None)):
        window = {"WindowCenter": 2000, "WindowWidth": 3000}
        odd, plain = make(deep, stored=12, RescaleSlope=slope, RescaleIntercept=-100, **window), make(deep, stored=12, **window)
        yield Feature(f"rescale slope {name}", odd, reference=lambda dcmtk, plain=plain: dcmtk.drawn(plain, one))  # type: ignore[misc]
    data = make(deep, stored=12, ModalityLUTSequence=table(curve(4096, 12), 0, 12), WindowCenter=3000, WindowWidth=1500)
    yield Feature("modality LUT and a window", data, ("+Wi", "1"))


def tables(keyword: str, name: str, deep_look: tuple[str, ...], shallow_look: tuple[str, ...]) -> Iterator[Feature]:
    """Lookup tables of either kind."""
    deep, shallow = scene(0, 4095, "uint16"), scene(0, 255, "uint8")

    def feature(what: str, values: Values, entries: Sequence, stored: int = 0, **elements: Any) -> Feature:
        look = shallow_look if values.dtype.itemsize == 1 and values.dtype.kind == "u" else deep_look
        return Feature(f"{name}: {what}", make(values, stored=stored, **{keyword: entries}, **elements), look)

    for bits in (8, 10, 11, 12, 14, 16):
        yield feature(f"{bits} bits", deep, table(curve(4096, bits), 0, bits), 12)
        yield feature(f"{bits} bits of 8", shallow, table(curve(256, bits), 0, bits))
    yield feature("US", deep, table(curve(4096, 12), 0, 12, "US"), 12)
    yield feature("UN", deep, table(curve(4096, 12), 0, 12, "UN"), 12)
    yield feature("8 bits packed", shallow, table(curve(256, 8), 0, 8, packed=True))
    yield feature("8 bits packed, odd", shallow, table(curve(255, 8), 0, 8, packed=True))
    yield feature("first value 1000", deep, table(curve(2000, 12), 1000, 12), 12)
    yield feature("first value -2000", scene(-2000, 2000, "int16"), table(curve(4001, 12), -2000, 12))
    yield feature("first value 40000", scene(40000, 56000, "uint16"), table(curve(16001, 12), 40000, 12))
    yield feature("65536 entries", scene(0, 65535, "uint16"), table(curve(65536, 16), 0, 16))
    yield feature("fewer entries than said", deep, shorter(table(curve(3000, 12), 0, 12), 4096), 12)
    yield feature("more entries than said", deep, shorter(table(curve(4096, 12), 0, 12), 3000), 12)
    yield feature("falling", deep, table(4095 - curve(4096, 12), 0, 12), 12)
    inverted = make(deep, "MONOCHROME1", stored=12, **{keyword: table(curve(4096, 12), 0, 12)})
    yield Feature(f"{name}: MONOCHROME1", inverted, deep_look)
    yield feature("12 bits, dim", deep, table(curve(4096, 11), 0, 12), 12)
    if keyword == "VOILUTSequence":
        rescaled = {"RescaleSlope": 1, "RescaleIntercept": -1024}
        yield feature("after a rescale", deep, table(curve(4096, 12), -1024, 12), 12, **rescaled)
        several = Sequence([*table(curve(4096, 12), 0, 12), *table(4095 - curve(4096, 12), 0, 12)])
        yield feature("the first of two", deep, several, 12)
        yield feature("before a window", deep, table(curve(4096, 12), 0, 12), 12, WindowCenter=9, WindowWidth=9)
        plain = make(deep, stored=12, WindowCenter=2000, WindowWidth=1000)
        for what, empty in (("without elements", Sequence([Dataset()])), ("without entries", emptied()), ("none", Sequence([]))):
            odd = make(deep, stored=12, VOILUTSequence=empty, WindowCenter=2000, WindowWidth=1000)
            yield Feature(f"{name}: {what}", odd, reference=lambda dcmtk: dcmtk.drawn(plain, ("+Wi", "1")))


def shorter(sequence: Sequence, said: int) -> Sequence:
    sequence[0].LUTDescriptor = [said, *sequence[0].LUTDescriptor[1:]]
    return sequence


def emptied() -> Sequence:
    sequence = table(curve(256, 8), 0, 8)
    sequence[0].LUTData = b""
    return sequence


def paddings() -> Iterator[Feature]:
    for name, dtype, vr, value, limit in (
        ("unsigned", "uint16", "US", 0, None),
        ("signed", "int16", "SS", -2000, None),
        ("a range", "int16", "SS", -2000, -1900),
        ("of the other sign", "int16", "US", 63536, None),
    ):
        values = scene(100, 1000, dtype)
        values[:, :9] = -2000 if dtype == "int16" else 0
        values[:5, :9] += 0 if limit is None else 60
        for photometric in ("MONOCHROME2", "MONOCHROME1"):
            data = make(values, photometric, WindowCenter=500, WindowWidth=900)
            data.add_new("PixelPaddingValue", vr, value)
            if limit is not None:
                data.add_new("PixelPaddingRangeLimit", vr, limit)
            yield Feature(f"{photometric}, padding {name}", data, ("+Wi", "1"), black=values < 100)


def groups() -> Iterator[Feature]:
    """Functional groups, which DCMTK does not read: it draws a flat object for each frame."""
    frames = np.stack([scene(0, 4095, "uint16", phase=at) for at in range(3)])

    def group(slope: float | None, window: tuple[float, float] | None) -> Dataset:
        inside = Dataset()
        if slope is not None:
            transformation = Dataset()
            transformation.RescaleSlope, transformation.RescaleIntercept = slope, -100
            inside.PixelValueTransformationSequence = Sequence([transformation])
        if window is not None:
            voi = Dataset()
            voi.WindowCenter, voi.WindowWidth = window
            inside.FrameVOILUTSequence = Sequence([voi])
        return inside

    def flat(slopes: list[float], looks: list[tuple[float, float]]) -> Reference:
        def draw(dcmtk: Dcmtk) -> list[NDArray[np.int64]]:
            drawn = []
            for values, slope, (centre, width) in zip(frames, slopes, looks, strict=True):
                alone = make(values, stored=12, RescaleSlope=slope, RescaleIntercept=-100, WindowCenter=centre, WindowWidth=width)
                drawn += dcmtk.drawn(alone, ("+Wi", "1"))
            return drawn

        return draw

    windows = [(1000.0, 800.0), (2000.0, 1500.0), (300.0, 4000.0)]
    for name, shared, own, slopes, looks in (
        ("shared", group(1, windows[0]), [group(None, None)] * 3, [1.0] * 3, windows[:1] * 3),
        ("per frame", group(None, None), [group(at + 1, windows[at]) for at in range(3)], [1.0, 2.0, 3.0], windows),
        ("shared rescale, own windows", group(2, None), [group(None, window) for window in windows], [2.0] * 3, windows),
        ("own rescale over a shared one", group(9, windows[1]), [group(1, None), group(2, None), group(1, None)], [1.0, 2.0, 1.0],
         windows[1:2] * 3),
    ):  # fmt: skip
        data = make(frames, stored=12, frames=3)
        data.SharedFunctionalGroupsSequence = Sequence([shared])
        data.PerFrameFunctionalGroupsSequence = Sequence(own)
        yield Feature(f"functional groups: {name}", data, reference=flat(slopes, looks))


def frames_of() -> Iterator[Feature]:
    for dtype, stored in (("uint8", 8), ("uint16", 12)):
        values = np.stack([scene(0, 2**stored - 1, dtype, phase=at) for at in range(4)])
        data = make(values, frames=4, stored=stored, WindowCenter=2 ** (stored - 1), WindowWidth=2**stored)
        yield Feature(f"4 frames of {dtype}", data, ("+Wi", "1"), lossy=True)
    yield Feature("3 frames of RGB", make(np.stack([colours(at) for at in range(3)]), "RGB", frames=3), lossy=True)
    deep = colours(top=4095)
    yield Feature("RGB of 12 bits", make(deep, "RGB", stored=12))
    none = make(scene(0, 255, "uint8"), frames=0)
    none.NumberOfFrames = 0
    yield Feature("0 frames", none)


def bits() -> Iterator[Feature]:
    """1 bit a pixel. DCMTK draws its ones as 128."""
    rng = np.random.default_rng(1)
    for rows, columns, frames in ((8, 8, 1), (7, 5, 1), (13, 11, 3), (99, 101, 3), (1, 17, 5), (16, 16, 2), (3, 3, 40)):
        values = rng.integers(0, 2, (frames, rows, columns)).astype("uint8")
        octets = np.packbits(values.reshape(-1), bitorder="little").tobytes()
        for vr in ("OB", "OW"):
            data = make(values, frames=frames)
            data.BitsAllocated = data.BitsStored = 1
            data.HighBit = 0
            data.add_new("PixelData", vr, octets + bytes(len(octets) % 2))
            yield Feature(f"1 bit, {frames} frames of {rows} x {columns}, {vr}", data, reference=doubled(data))


def doubled(data: FileDataset) -> Reference:
    return lambda dcmtk: [np.where(frame > 0, 255, 0) for frame in dcmtk.drawn(data, ("-W",))]


def floats() -> Iterator[Feature]:
    whole = scene(10, 4000, "uint16")
    plain = make(whole, stored=16)
    for dtype, keyword, prefix, vr in (("float32", "FloatPixelData", "Float", "FL"),
                                       ("float64", "DoubleFloatPixelData", "DoubleFloat", "FD")):  # fmt: skip
        for what in ("plain", "padded", "not a number", "infinite"):
            values = whole.astype(dtype)
            margin = np.zeros(whole.shape, bool)
            margin[:, : 0 if what == "plain" else 7] = True
            values[margin] = {"plain": 0, "padded": -9999.5, "not a number": np.nan, "infinite": np.inf}[what]
            data = make(whole)
            del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
            data.BitsAllocated = 8 * values.dtype.itemsize
            setattr(data, keyword, values.tobytes())
            if what == "padded":
                data.add_new(f"{prefix}PixelPaddingValue", vr, -9999.5)
            black = margin if margin.any() else None
            yield Feature(f"{dtype}, {what}", data, reference=lambda dcmtk: dcmtk.drawn(plain, ("+Wm",)), black=black)


def colour_features() -> Iterator[Feature]:
    for top in (255, 65535):
        for planar in (0, 1):
            values = colours(top=top)
            data = make(values, "RGB", PlanarConfiguration=planar)
            data.PixelData = (values.transpose(2, 0, 1) if planar else values).tobytes()
            yield Feature(f"RGB to {top}, planar {planar}", data, lossy=top == 255 and not planar)
    ycc = convert_color_space(colours(), "RGB", "YBR_FULL")
    for planar in (0, 1):
        data = make(ycc, "YBR_FULL", PlanarConfiguration=planar)
        data.PixelData = (ycc.transpose(2, 0, 1) if planar else ycc).tobytes()
        yield Feature(f"YBR_FULL, planar {planar}", data, levels=2)  # DCMTK rounds each product
    halved = make(ycc, "YBR_FULL_422")
    pairs = ycc.reshape(ROWS, COLUMNS // 2, 2, 3)
    halved.PixelData = np.concatenate([pairs[..., 0], pairs[:, :, 0, 1:]], axis=2).tobytes()
    yield Feature("YBR_FULL_422", halved, levels=2)


def palette(dataset: FileDataset, entries: Values, first: int, bits: int, vr: str = "OW", packed: bool = False) -> FileDataset:
    """Give an object three tables, (3, n)."""
    for colour, one in zip(("Red", "Green", "Blue"), entries, strict=True):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [one.size % 0x10000, first % 0x10000, bits])
        octets = one.astype("u1" if packed else "<u2").tobytes()
        data = octets + bytes(len(octets) % 2) if vr == "OW" else one.astype(int).tolist()
        dataset.add_new(f"{colour}PaletteColorLookupTableData", vr, data)
    return dataset


def hues(count: int, top: int) -> Values:
    share = np.linspace(0, 1, count)
    return np.rint(np.stack([share, 1 - share, np.abs(2 * share - 1)]) * top)


def palettes() -> Iterator[Feature]:
    shallow, deep = scene(0, 255, "uint8"), scene(0, 4095, "uint16")

    def of(values: Values, entries: Values, first: int, bits: int, **more: Any) -> FileDataset:
        return palette(make(values, "PALETTE COLOR"), entries, first, bits, **more)

    yield Feature("palette of 16 bits", of(shallow, hues(256, 65535), 0, 16))
    yield Feature("palette of 16 bits, US", of(shallow, hues(256, 65535), 0, 16, vr="US"))
    yield Feature("palette of 8 bits in words", of(shallow, hues(256, 255), 0, 8))
    yield Feature("palette of 8 bits packed", of(shallow, hues(256, 255), 0, 8, packed=True))
    yield Feature("palette of 8 bits packed, odd", of(shallow, hues(255, 255), 0, 8, packed=True))
    yield Feature("palette of deep values", of(deep, hues(4096, 65535), 0, 16))
    yield Feature("palette from 1000", of(deep, hues(2000, 65535), 1000, 16))
    yield Feature("palette of signed values", of(scene(-2000, 2000, "int16"), hues(4001, 65535), -2000, 16))
    yield Feature("palette of 65536 entries", of(scene(0, 65535, "uint16"), hues(65536, 65535), 0, 16))
    frames = np.stack([scene(0, 255, "uint8", phase=at) for at in range(3)])
    yield Feature("palette of 3 frames", palette(make(frames, "PALETTE COLOR", frames=3), hues(256, 65535), 0, 16))
    for bits_, dtype in ((16, "<u2"), (8, "u1")):
        top = 2**bits_ - 1
        ramp = np.rint(np.linspace(0, top, 256))
        expanded = of(shallow, np.stack([ramp, ramp[::-1], ramp]), 0, bits_)
        data = make(shallow, "PALETTE COLOR")
        for colour, ends in (("Red", (0, top)), ("Green", (top, 0)), ("Blue", (0, top))):
            segments = np.array([0, 1, ends[0], 1, 255, ends[1]]).astype(dtype).tobytes()
            data.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, bits_])
            data.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", segments)
        yield Feature(f"segmented palette of {bits_} bits", data, reference=lambda dcmtk, same=expanded: dcmtk.drawn(same, ("-W",)))  # type: ignore[misc]
    yield supplemental()


def supplemental() -> Feature:
    """Values from 3000 in colours, those below in grey: DCMTK draws either half."""
    values = scene(0, 3999, "uint16")
    window = {"WindowCenter": 1500, "WindowWidth": 3000}
    data = palette(make(values, stored=16, PixelPresentation="COLOR", **window), hues(1000, 65535), 3000, 16)
    coloured = palette(make(values, "PALETTE COLOR"), hues(1000, 65535), 3000, 16)
    grey = make(values, stored=16, **window)

    def draw(dcmtk: Dcmtk) -> list[NDArray[np.int64]]:
        (high,), (low,) = dcmtk.drawn(coloured, ("-W",)), dcmtk.drawn(grey, ("+Wi", "1"))
        return [np.where((values >= 3000)[..., None], high, low)]

    return Feature("supplemental palette", data, reference=draw)


def features() -> Iterator[Feature]:
    yield from depths()
    yield from windows()
    yield from modalities()
    yield from tables("VOILUTSequence", "VOI LUT", ("+Wl", "1"), ("+Wl", "1"))
    yield from paddings()
    yield from groups()
    yield from frames_of()
    yield from bits()
    yield from floats()
    yield from colour_features()
    yield from palettes()


# -- transfer syntaxes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Syntax:
    """A way to write a native object.

    Attributes:
        encode: the file, or None where the syntax is not legal for the object.
        read: whether DCMTK draws it.
    """

    name: str
    encode: Callable[[Feature, Dcmtk], Path | None]
    read: bool = True
    lossy: bool = False


def by(program: str, *options: str, whole_bytes: bool = True) -> Callable[[Feature, Dcmtk], Path | None]:
    def encode(feature: Feature, dcmtk: Dcmtk) -> Path | None:
        if whole_bytes and ("PixelData" not in feature.dataset or feature.dataset.BitsAllocated == 1):
            return None
        source = dcmtk.folder / "native.dcm"
        write(feature.dataset, source)
        return dcmtk.convert(program, source, *options)

    return encode


def native(feature: Feature, dcmtk: Dcmtk) -> Path:
    target = dcmtk.folder / "converted.dcm"
    write(feature.dataset, target)
    return target


def frames_and_values(dataset: FileDataset) -> list[Values]:
    """The stored values of each frame."""
    samples = dataset.SamplesPerPixel
    dtype = np.dtype(f"<{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}")
    count = max(int(dataset.get("NumberOfFrames") or 1), 1)
    values = np.frombuffer(dataset.PixelData, dtype)[: count * dataset.Rows * dataset.Columns * samples]
    shape = (dataset.Rows, dataset.Columns, samples) if samples > 1 else (dataset.Rows, dataset.Columns)
    if samples > 1 and dataset.PlanarConfiguration:
        return list(values.reshape(count, samples, *shape[:2]).transpose(0, 2, 3, 1))
    return list(values.reshape(count, *shape))


def coded(
    syntax: str, code: Callable[[Values, int], bytes], depth: int = 16, photometric: str = "", signed: bool = True
) -> Callable[[Feature, Dcmtk], Path | None]:
    """Encode each frame by imagecodecs.

    Args:
        code: from values and bits stored.
        depth: bits stored, at most.
        photometric: what the header says of RGB afterwards.
        signed: whether signed values can be coded.
    """

    def encode(feature: Feature, dcmtk: Dcmtk) -> Path | None:
        source = feature.dataset
        if "PixelData" not in source or source.BitsAllocated not in (8, 16) or source.BitsStored > depth:
            return None
        if (source.PixelRepresentation and not signed) or source.HighBit != source.BitsStored - 1:
            return None
        if source.SamplesPerPixel > 1 and source.PhotometricInterpretation != "RGB":
            return None
        values = frames_and_values(source)
        if any(int(frame.max()) >> source.BitsStored for frame in values):
            return None  # other bits above those that are stored
        data = FileDataset("", deepcopy(dict(source)), file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        data.file_meta.TransferSyntaxUID = uid.UID(syntax)
        if source.SamplesPerPixel > 1:
            data.PlanarConfiguration = 0
            data.PhotometricInterpretation = photometric or "RGB"
        data.add_new("PixelData", "OB", encapsulate([code(np.ascontiguousarray(one), source.BitsStored) for one in values]))
        target = dcmtk.folder / "converted.dcm"
        write(data, target)
        return target

    return encode


def jpeg(values: Values, stored: int) -> bytes:
    if values.ndim == 3:
        return bytes(imagecodecs.jpeg8_encode(values, level=98, colorspace="RGB", outcolorspace="YCBCR", subsampling="444"))
    return bytes(imagecodecs.jpeg8_encode(values, level=98, bitspersample=8 if values.dtype == np.uint8 else 12))


def jpeg2000(values: Values, stored: int, reversible: bool = True, mct: bool = True) -> bytes:
    level = None if reversible else 60
    return bytes(
        imagecodecs.jpeg2k_encode(values, level=level, codecformat="j2k", reversible=reversible, bitspersample=stored, mct=mct)
    )


def htj2k(values: Values, stored: int, reversible: bool = True, rgb: bool = True) -> bytes:
    level = None if reversible else 0.2 / 2**stored
    return bytes(imagecodecs.htj2k_encode(values, level=level, reversible=reversible, rgb=rgb and values.ndim == 3))


def deflated_frames(feature: Feature, dcmtk: Dcmtk) -> Path | None:
    """Frame-wise deflate, which neither DCMTK nor pydicom writes."""
    source = feature.dataset
    if "PixelData" not in source or source.PhotometricInterpretation == "YBR_FULL_422":
        return None
    count = max(int(source.get("NumberOfFrames") or 1), 1)
    size = source.Rows * source.Columns * source.SamplesPerPixel
    if source.BitsAllocated == 1:
        values = np.unpackbits(np.frombuffer(source.PixelData, np.uint8), bitorder="little")[: count * size].reshape(count, size)
        frames = [np.packbits(frame, bitorder="little").tobytes() for frame in values]
    else:
        step = size * source.BitsAllocated // 8
        frames = [source.PixelData[at * step : (at + 1) * step] for at in range(count)]
    data = FileDataset("", dict(source), is_implicit_VR=False, is_little_endian=True)
    parts = []
    for frame in frames:
        deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        parts.append(deflater.compress(frame) + deflater.flush())
    data.add_new("PixelData", "OB", encapsulate(parts))
    data["PixelData"].is_undefined_length = True
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, data)
    meta = b"\2\0\x10\0UI" + len(DEFLATED_FRAMES + "\0").to_bytes(2, "little") + DEFLATED_FRAMES.encode() + b"\0"
    target = dcmtk.folder / "converted.dcm"
    target.write_bytes(bytes(128) + b"DICM" + meta + buffer.getvalue())
    return target


SYNTAXES = (
    Syntax("explicit", native),
    Syntax("implicit", by("dcmconv", "+ti", whole_bytes=False)),
    Syntax("big endian", by("dcmconv", "+tb", whole_bytes=False)),
    Syntax("deflated", by("dcmconv", "+td", whole_bytes=False)),
    Syntax("RLE", by("dcmcrle")),
    Syntax("lossless JPEG, SV1", by("dcmcjpeg", "+e1")),
    Syntax("lossless JPEG, predictor 4", by("dcmcjpeg", "+el", "+sv", "4")),
    Syntax("JPEG-LS", by("dcmcjpls", "+el")),
    Syntax("near-lossless JPEG-LS", by("dcmcjpls", "+en", "+md", "1"), lossy=True),
    Syntax("frame-wise deflate", deflated_frames, read=False),
    Syntax("JPEG 2000", coded(uid.JPEG2000Lossless, jpeg2000, photometric="YBR_RCT"), read=False),
    Syntax("HTJ2K", coded(uid.HTJ2KLossless, htj2k, photometric="YBR_RCT"), read=False),
    Syntax("baseline JPEG", coded(uid.JPEGBaseline8Bit, jpeg, 8, "YBR_FULL", signed=False), lossy=True),
    Syntax("extended JPEG", coded(uid.JPEGExtended12Bit, jpeg, 12, "YBR_FULL", signed=False), lossy=True),
    Syntax(
        "lossy JPEG 2000",
        coded(uid.JPEG2000, lambda values, stored: jpeg2000(values, stored, reversible=False), photometric="YBR_ICT"),
        read=False,
        lossy=True,
    ),
    Syntax(
        "lossy HTJ2K",
        coded(uid.HTJ2K, lambda values, stored: htj2k(values, stored, reversible=False), photometric="YBR_ICT"),
        read=False,
        lossy=True,
    ),
)


def colour_codes() -> Iterator[tuple[str, FileDataset, bool]]:
    """Codestreams whose own word on their colours differs from the header's, each of the same image: name, object, lossy."""
    image = colours()
    ycc = convert_color_space(image, "RGB", "YBR_FULL")

    def of(syntax: str, photometric: str, code: bytes) -> FileDataset:
        data = make(image, photometric)
        data.file_meta.TransferSyntaxUID = uid.UID(syntax)
        data.add_new("PixelData", "OB", encapsulate([code]))
        return data

    headers = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
    for header in headers:
        for name, syntax, code, lossy in (
            ("JPEG 2000", uid.JPEG2000Lossless, jpeg2000(image, 8), False),
            ("lossy JPEG 2000", uid.JPEG2000, jpeg2000(image, 8, reversible=False), True),
            ("HTJ2K", uid.HTJ2KLossless, htj2k(image, 8), False),
            ("HTJ2K RPCL", uid.HTJ2KLosslessRPCL, htj2k(image, 8), False),
            ("lossy HTJ2K", uid.HTJ2K, htj2k(image, 8, reversible=False), True),
        ):
            yield f"{name}, transformed, header {header}", of(syntax, header, code), lossy
        code = jpeg2000(ycc if header.startswith("YBR_FULL") else image, 8, mct=False)
        yield f"JPEG 2000, not transformed, header {header}", of(uid.JPEG2000Lossless, header, code), False
        code = htj2k(ycc if header.startswith("YBR_FULL") else image, 8, rgb=False)
        yield f"HTJ2K, not transformed, header {header}", of(uid.HTJ2KLossless, header, code), False
    for header in headers[:3]:
        for sampling in ("444", "422", "420"):
            code = imagecodecs.jpeg8_encode(image, level=98, colorspace="RGB", outcolorspace="YCBCR", subsampling=sampling)
            yield f"baseline JPEG {sampling} with JFIF, header {header}", of(uid.JPEGBaseline8Bit, header, bytes(code)), True
            if header != "RGB" or sampling != "444":  # else nothing tells
                bare = without_markers(bytes(code))
                yield f"baseline JPEG {sampling} without markers, header {header}", of(uid.JPEGBaseline8Bit, header, bare), True
        code = imagecodecs.jpeg8_encode(image, level=98, colorspace="RGB", outcolorspace="RGB")
        yield f"baseline JPEG of RGB with Adobe, header {header}", of(uid.JPEGBaseline8Bit, header, bytes(code)), True
    bare = without_markers(bytes(imagecodecs.jpeg8_encode(image, level=98, colorspace="RGB", outcolorspace="RGB")))
    yield "baseline JPEG of RGB without markers, header RGB", of(uid.JPEGBaseline8Bit, "RGB", bare), True


def without_markers(code: bytes) -> bytes:
    """A JPEG without the segments of JFIF and Adobe, and with component numbers 1, 2, 3."""
    kept, at = code[:2], 2
    while code[at + 1] != 0xDA:
        size = 2 + int.from_bytes(code[at + 2 : at + 4], "big")
        if code[at + 1] not in (0xE0, 0xEE):
            kept += code[at : at + size]
        at += size
    code = bytearray(kept + code[at:])
    frame, scan = code.index(b"\xff\xc0"), code.index(b"\xff\xda")
    for number in range(3):
        code[frame + 10 + 3 * number] = code[scan + 5 + 2 * number] = number + 1
    return bytes(code)


# -- the comparison ----------------------------------------------------------------------------------------------------------


def sweep(folder: Path, only: Callable[[int, str], bool] = lambda number, name: True) -> Iterator[Outcome]:
    """Compare every feature in every syntax that is legal for it.

    Args:
        folder: for DCMTK's files.
        only: whether to compare a combination, by its number and its name.
    """
    dcmtk = Dcmtk(folder)
    number = 0
    for feature in features():
        for syntax in SYNTAXES:
            if syntax.lossy and not feature.lossy:
                continue
            number += 1
            if not only(number, f"{feature.name}, {syntax.name}"):
                continue
            path = syntax.encode(feature, dcmtk)
            if path is not None:
                yield compare(feature, syntax, path, dcmtk)
    image = make(colours(), "RGB")
    for name, data, lossy in colour_codes():
        number += 1
        if only(number, name):
            path = dcmtk.folder / "converted.dcm"
            write(data, path)
            feature = Feature(name, data, reference=lambda dcmtk: dcmtk.drawn(image, ("-W",)))
            yield compare(feature, Syntax("itself", native, read=False, lossy=lossy), path, dcmtk)


def compare(feature: Feature, syntax: Syntax, path: Path, dcmtk: Dcmtk) -> Outcome:
    data = path.read_bytes()
    try:
        if feature.reference is not None:
            expected = feature.reference(dcmtk)
        else:
            expected = dcmtk.draw(path, feature.look) if syntax.read else dcmtk.drawn(feature.dataset, feature.look)
    except NotDrawnError:
        return Outcome(feature.name, syntax.name, untold="DCMTK does not draw it")
    try:
        image = open_image(data)
        found = [image.frame(number).astype(np.int64) for number in range(image.frames)]
    except ImageError as error:
        return Outcome(feature.name, syntax.name, error=f"{error.reason}: {error}")
    if [one.shape for one in found] != [one.shape for one in expected]:
        return Outcome(feature.name, syntax.name)
    stack, other = np.stack(found), np.stack(expected)
    if feature.black is not None:
        other = np.where(feature.black[..., None], 0, other)
    apart = np.abs(stack - other)
    allowed = feature.levels
    if syntax.lossy:
        allowed += CODED_LEVELS if not syntax.read else LOSSY_LEVELS
    return Outcome(feature.name, syntax.name, int(apart.max()), float(apart.mean()), allowed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="combinations whose name contains this")
    parser.add_argument("--list", action="store_true", help="every combination, not the differing ones alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not shutil.which("dcmj2pnm"):
        sys.exit("dcmj2pnm is required: apt-get install dcmtk")
    with tempfile.TemporaryDirectory() as folder:
        outcomes = list(sweep(Path(folder), lambda _, name: arguments.only in name))
    compared = [outcome for outcome in outcomes if not outcome.untold]
    kinds = ("equal", "close", "refused", "different")
    print(f"| transfer syntax | combinations | {' | '.join(kinds)} |")
    print(f"| --- | --- | {' | '.join('---' for _ in kinds)} |")
    for name in [*dict.fromkeys(outcome.syntax for outcome in compared), "all"]:
        counts = Counter(outcome.kind for outcome in compared if name in (outcome.syntax, "all"))
        print(f"| {name} | {counts.total()} | {' | '.join(str(counts[kind]) for kind in kinds)} |")
    for outcome in outcomes:
        if arguments.list or outcome.untold or outcome.kind in ("refused", "different"):
            what = (
                outcome.error
                or outcome.untold
                or f"{outcome.apart} levels, {outcome.mean:.2f} on average; {outcome.allowed} allowed"
            )
            print(f"{'untold' if outcome.untold else outcome.kind}: {outcome.feature} [{outcome.syntax}]: {what}")
    return int(any(outcome.kind == "different" for outcome in compared))


if __name__ == "__main__":
    sys.exit(main())
