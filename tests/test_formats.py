"""Which files in a folder are images, told by their content: read, refused as images that are not read, or plainly none.

The files come from other programs (ImageMagick, Pillow, imagecodecs, Python's own modules) wherever one writes the format.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
import time
import wave
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from lcmem_onnx.cli import main
from lcmem_onnx.runtime.errors import ImageError, Reason
from lcmem_onnx.runtime.images.discovery import Found, Skipped, SkipReason, Unfound, walk
from lcmem_onnx.runtime.images.file_signatures import Format
from lcmem_onnx.runtime.images.formats import Kind, identify
from lcmem_onnx.runtime.images.image import open_image
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
SMOOTH = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)
)


def judged(path: Path) -> str:
    """What a walk makes of the one file in a folder: "read", "unsupported", or the reason why it is skipped."""
    (item, *rest) = walk([path.parent])
    if isinstance(item, Skipped):
        assert [entry.error.reason for entry in rest if isinstance(entry, Unfound)] == [Reason.EMPTY_FOLDER]
        return item.reason.value
    if isinstance(item, Found):
        return "read"
    assert isinstance(item, Unfound)
    assert item.error.reason is Reason.UNSUPPORTED
    return "unsupported"


def made(folder: Path, data: bytes, name: str = "file") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


# -- images that are not read ----------------------------------------------------------------------------------------


IMAGEMAGICK = (  # noqa: SIM905
    "avif cin cur dds djvu dpx exr farbfeld fits flif gray hdr heic ico jng jp2 j2k jxl miff mng otb palm pam pbm pcd pcx pfm pgm "
    "pict ppm psb psd qoi ras rgb rgf sgi sixel tga vicar vid viff wbmp webp xbm xpm xwd yuv"
).split()


@pytest.mark.parametrize("form", IMAGEMAGICK)
def test_an_image_of_imagemagick_is_read_or_an_error_whatever_its_name(form: str, tmp_path: Path) -> None:
    if shutil.which("convert") is None:
        pytest.skip("ImageMagick is not installed")
    source, target = made(tmp_path / "source", png(), "a.png"), tmp_path / "out"
    done = subprocess.run(["convert", source, f"{form}:{target}"], capture_output=True, check=False)
    if done.returncode or not target.is_file() or not target.stat().st_size:
        pytest.skip(f"this ImageMagick does not write {form}")
    for name in ("file", "file.txt", f"file.{form}"):
        path = made(tmp_path / name, target.read_bytes(), name)
        assert judged(path) in ("read", "unsupported"), name
    with target.open("rb") as stream:
        found = identify(stream)
    assert isinstance(found, Kind) or found.skip is None


def tga() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).save(stream, "TGA")
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(SMOOTH).save(stream, "PNG")
    return stream.getvalue()


def nifti(magic: bytes = b"n+1\0") -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    header[344:348] = magic
    return bytes(header) + bytes(1000)


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=SMOOTH)
    return stream.getvalue()


def zipped(members: dict[str, bytes], *, stored: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def lzip(content: bytes) -> bytes:
    """As the program lzip writes it: a header, an LZMA stream, a checksum and two lengths."""
    options = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=[options])
    trailer = struct.pack("<IQQ", zlib.crc32(content), len(content), len(packed) + 26)
    return b"LZIP\1\x10" + packed + trailer


def tar(form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        member = tarfile.TarInfo("notes.txt")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    return stream.getvalue()


def sound() -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(2000))
    return stream.getvalue()


def database(folder: Path) -> bytes:
    connection = sqlite3.connect(folder / "x.sqlite")
    with connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    data = (folder / "x.sqlite").read_bytes()
    (folder / "x.sqlite").unlink()
    return data


def pdf(*, image: bool) -> bytes:
    stream = io.BytesIO()
    if image:
        Image.fromarray(SMOOTH).save(stream, "PDF")
        return stream.getvalue()
    return b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog /Subtype /Images >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n"


WORD = {"[Content_Types].xml": b"<Types/>", "word/document.xml": b"<w/>"}
ODF = {"mimetype": b"application/vnd.oasis.opendocument.text", "Thumbnails/thumbnail.png": png()}
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2040)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9"><image href="data:image/png;base64,AAAA"/></svg>'

IMAGES: dict[str, bytes] = {
    "JPEG XL": imagecodecs.jpegxl_encode(SMOOTH),
    "JPEG XR": imagecodecs.jpegxr_encode(SMOOTH),
    "JPEG 2000": imagecodecs.jpeg2k_encode(SMOOTH),
    "JPEG 2000 codestream": imagecodecs.jpeg2k_encode(SMOOTH, codecformat="j2k"),
    "AVIF": imagecodecs.avif_encode(SMOOTH),
    "QOI": imagecodecs.qoi_encode(SMOOTH),
    "NIfTI": nifti(),
    "NIfTI header": nifti(b"ni1\0"),
    "NIfTI, compressed": gzip.compress(nifti()),
    "FreeSurfer, compressed": gzip.compress(struct.pack(">7i", 1, 64, 48, 3, 1, 0, 0) + bytes(900)),
    "NRRD": b"NRRD0004\ntype: unsigned char\ndimension: 2\nsizes: 64 48\n\n" + SMOOTH[..., 0].tobytes(),
    "MetaImage header": b"ObjectType = Image\nNDims = 2\nDimSize = 64 48\nElementDataFile = a.raw\n",
    "pixels alone": SMOOTH.tobytes(),
    "one level alone": bytes([200]) * 4096 + bytes(range(256)),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(500),
    "NumPy": npy(SMOOTH),
    "NumPy volume": npy(np.zeros((3, 4, 5), np.float32)),
    "NumPy archive": npz(),
    "SVG": SVG,
    "SVG with a prolog": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- <html> -->\n<!DOCTYPE svg PUBLIC "x" "y">\n' + SVG,
    "SVG with a prefix": b"<s:svg xmlns:s='http://www.w3.org/2000/svg'/>",
    "SVG, compressed": gzip.compress(SVG),
    "PNG, compressed": gzip.compress(png()),
    "PNG in bzip2": bz2.compress(png()),
    "PNG in xz": lzma.compress(png()),
    "PNG in lzma": lzma.compress(png(), lzma.FORMAT_ALONE),
    "PNG in zlib": zlib.compress(png()),
    "PNG in zstd": imagecodecs.zstd_encode(png()),
    "PNG in zstd behind a part to skip": b"\x52\x2a\x4d\x18\x05\0\0\0hello" + imagecodecs.zstd_encode(png()),
    "PNG in lz4": imagecodecs.lz4f_encode(png()),
    "PNG in lzip": lzip(png()),
    "NIfTI in zstd": imagecodecs.zstd_encode(nifti()),
    "pixels in zstd": imagecodecs.zstd_encode(np.random.default_rng(5).bytes(300_000)),
    "pixels in gzip": gzip.compress(np.random.default_rng(5).bytes(3000)),
    "compress": b"\x1f\x9d\x90" + bytes(range(200)),
    "zstd with a dictionary": b"\x28\xb5\x2f\xfd\x01\x50\x07" + bytes(100),
    "gzip, cut off": gzip.compress(png())[:9],
    "zstd, cut off": imagecodecs.zstd_encode(png())[:9],
    "lz4, cut off": imagecodecs.lz4f_encode(png())[:9],
    "PDF in gzip": gzip.compress(pdf(image=False)),
    "DICOM, compressed": gzip.compress(CT),
    "XBM": b"/* made by hand */\n#define a_width 8\n#define a_height 2\nstatic char a_bits[] = { 0x13, 0x00 };\n",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "Krita": zipped({"mimetype": b"application/x-krita", "maindoc.xml": b"<x/>"}, stored=True),
    "PDF with an image": pdf(image=True),
    "PDF with an image behind a header": b"\0\1mail\n" + pdf(image=True),
    "QuickTime video": b"\0\0\0\x08wide\0\0\1\0mdat" + bytes(200),
    "EMF": b"\1\0\0\0\x6c\0\0\0" + bytes(32) + b" EMF" + bytes(100),
    "Word with an image": zipped({**WORD, "word/media/image1.png": png()}),
    "slides with a video": zipped({**WORD, "ppt/media/media1.mp4": b"x"}),
    "OpenDocument with an image": zipped({**ODF, "Pictures/10000000.png": png()}, stored=True),
    "EPUB with an image": zipped({"mimetype": b"application/epub+zip", "OEBPS/cover.jpg": b"x"}, stored=True),
    "thumbnails of Windows": OLE + b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(400),
    "RTF with an image": rb"{\rtf1\ansi a {\pict\pngblip 89504e47}}",
    "MPEG-4 video": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(200),
    "AVI video": b"RIFF\0\1\0\0AVI LIST" + bytes(200),
    "WebM video": b"\x1a\x45\xdf\xa3\x93B\x82\x88webm" + bytes(200),
    "Ogg video": b"OggS\0\2" + bytes(22) + b"\x80theora" + bytes(100),
    "MPEG transport stream": (b"\x47\x40\0\x10" + bytes(184)) * 3,
    "raw of Fujifilm": b"FUJIFILMCCD-RAW 0201" + bytes(200),
    "Targa without its name": tga(),
    "no known format": np.random.default_rng(5).bytes(3000),
    "zeros": bytes(3000),
}


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_an_image_or_may_be_one_is_never_skipped(name: str, tmp_path: Path) -> None:
    data = IMAGES[name]
    for suffix in ("", ".txt", ".zip", ".dat"):
        assert judged(made(tmp_path / f"folder{suffix}", data, f"file{suffix}")) in ("read", "unsupported"), suffix
    with io.BytesIO(data) as stream:
        found = identify(stream)
    if not isinstance(found, Kind):
        with pytest.raises(ImageError) as caught:
            open_image(data, name_hint="named")
        assert caught.value.reason is Reason.UNSUPPORTED


OTHERS: dict[str, tuple[str, bytes]] = {
    "text": ("text", b"A note.\n"),
    "text without a line end": ("text", b"patient,score"),
    "long text": ("text", ("Jülich, 10 µg\r\n" * 3000).encode()),
    "text in Latin-1": ("text", ("Jülich, 10 µg\r\n" * 30).encode("latin-1")),
    "text in Shift JIS": ("text", ("胸部の画像\r\n" * 30).encode("shift_jis")),
    "text in UTF-16": ("text", "Jülich\r\n".encode("utf-16")),
    "text in UTF-32": ("text", "Jülich\r\n".encode("utf-32")),
    "Python": ("text", Path(__file__).read_bytes()),
    "HTML with a drawing": ("text", b"<!DOCTYPE html>\n<html><body><svg width='3'></svg></body></html>"),
    "XML": ("text", b'<?xml version="1.0"?>\n<!-- about <svg> -->\n<report/>'),
    "C header": ("text", b"/* a */ /* b */\n#define depth 3\n" + b"/* c */ " * 300),
    "text that begins with BM": ("text", b"BM is how this text begins, and it goes on for a while"),
    "text that begins with P5": ("text", b"P5 is a room on the second floor\n"),
    "text that begins with II": ("text", b"II. Methods\nMM. 4 of them\n"),
    "text about wide things": ("text", b"The wide and the free\n"),
    "text about PDF": ("text", b"# it begins with %PDF-1.7, and images are /Subtype /Image\n"),
    "text about EMF": ("text", b"a sentence in which the fortieth byte is EMF, as here: EMF EMF EMF EMF\n"),
    "text that begins with MZ": ("text", b"MZ went home\n"),
    "text that begins with FORM": ("text", b"FORM 7: consent\n"),
    "ZIP": ("archive", zipped({"a.txt": b"hello"})),
    "ZIP of images": ("archive", zipped({"a.png": png()})),
    "empty ZIP": ("archive", zipped({})),
    "tar": ("archive", tar(tarfile.USTAR_FORMAT)),
    "tar of GNU": ("archive", tar(tarfile.GNU_FORMAT)),
    "old tar": ("archive", b""),
    "tar.gz": ("archive", gzip.compress(tar(tarfile.PAX_FORMAT))),
    "gzip": ("archive", gzip.compress(b"hello\n")),
    "bzip2": ("archive", bz2.compress(b"hello\n")),
    "xz": ("archive", lzma.compress(b"hello\n")),
    "zlib": ("archive", zlib.compress(b"blob 5\0hello")),
    "zstd": ("archive", imagecodecs.zstd_encode(b"hello\n")),
    "tar.zst": ("archive", imagecodecs.zstd_encode(tar(tarfile.PAX_FORMAT) + bytes(400_000))),
    "lz4": ("archive", imagecodecs.lz4f_encode(b"hello\n" * 20_000)),
    "lzip": ("archive", lzip(b"hello\n")),
    "gzip of nothing": ("archive", gzip.compress(b"")),
    "zstd of nothing": ("archive", imagecodecs.zstd_encode(b"")),
    "lz4 of nothing": ("archive", imagecodecs.lz4f_encode(b"")),
    "text about LZIP": ("text", b"LZIP is a program that compresses.\n"),
    "7z": ("archive", b"7z\xbc\xaf\x27\x1c\0\4" + bytes(100)),
    "RAR": ("archive", b"Rar!\x1a\x07\1\0" + bytes(100)),
    "PDF of text": ("document", pdf(image=False)),
    "Word": ("document", zipped(WORD)),
    "OpenDocument": ("document", zipped(ODF, stored=True)),
    "EPUB": ("document", zipped({"mimetype": b"application/epub+zip", "a.xhtml": b"x"}, stored=True)),
    "old Word": ("document", OLE),
    "RTF": ("document", rb"{\rtf1\ansi a text}"),
    "program": ("program", Path(sys.executable).resolve().read_bytes()[:5000]),
    "Windows program": ("program", b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff" + bytes(300)),
    "bytecode": ("program", b"\xa7\r\r\n" + bytes(12) + b"\xe3\0\0"),
    "pickle": ("data", pickle.dumps({"a": 1})),
    "list of numbers": ("data", npy(np.arange(100))),
    "one number": ("data", npy(np.float64(3))),
    "Parquet": ("data", b"PAR1\x15\4" + bytes(100) + b"PAR1"),
    "SQLite": ("data", b""),
    "wave": ("audio", sound()),
    "MP3": ("audio", b"\xff\xfb\x90\x64" + bytes(400)),
    "MPEG-4 audio": ("audio", b"\0\0\0\x18ftypM4A \0\0\2\0isomiso2" + bytes(200)),
    "font": ("font", b"OTTO\0\x0b" + bytes(100)),
    "nothing": ("empty", b""),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_plainly_no_image_is_skipped_with_its_reason(name: str, tmp_path: Path) -> None:
    reason, data = OTHERS[name]
    if name == "SQLite":
        data = database(tmp_path)
    if name == "old tar":  # before 1988, without a mark
        data = bytearray(tar(tarfile.USTAR_FORMAT))
        data[257:512] = bytes(255)
        data[148:156] = f"{sum(data[:148]) + 8 * 32 + sum(data[156:512]):06o}\0 ".encode()
    for suffix in ("", ".bin"):
        assert judged(made(tmp_path / f"folder{suffix}", bytes(data), f"file{suffix}")) == reason, suffix
    if data:
        with pytest.raises(ImageError) as caught:
            open_image(bytes(data))
        assert caught.value.reason is Reason.NOT_AN_IMAGE
    # Named like an image, it is one that cannot be read.
    (item,) = walk([made(tmp_path / "named", bytes(data), "a.png").parent])
    assert isinstance(item, Found)


def test_a_text_that_turns_into_pixels_is_not_text(tmp_path: Path) -> None:
    header = b"!a vendor's header\nrows: 64\ncolumns: 48\n" + b"-" * 8000 + b"\n"
    assert judged(made(tmp_path / "one", header + SMOOTH.tobytes())) == "unsupported"
    assert judged(made(tmp_path / "two", header)) == "text"


def test_a_pipe_and_a_socket_are_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert judged(tmp_path / "pipe") == "special-file"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", *(data[:64] for data in IMAGES.values()), *(data[:64] for _, data in OTHERS.values())]),
    st.binary(max_size=600),
)
def test_any_bytes_are_told_quickly_and_without_an_error(start: bytes, rest: bytes) -> None:
    found = identify(io.BytesIO(start + rest))
    assert isinstance(found, Kind | Format)


@pytest.mark.parametrize(
    "data",
    [
        b"<!--" * 1000 + b"-->",
        b"<?" * 2000,
        b"/*" * 2000,
        b"/* */" * 800 + b"#define",
        b" " * 4000 + b"<svg",
        b"<!DOCTYPE " * 400,
        b"P5 " + b"#\n" * 2000,
        b"\x93NUMPY\1\0v\0{" + b"'shape': (" * 300,
        b"{\\rtf" + b"\\pic" * 500_000,
        b"%PDF-1.4" + b"/Subtype " * 300_000,
        gzip.compress(bytes(1 << 24)),
        bz2.compress(bytes(1 << 24)),
        lzma.compress(bytes(1 << 24)),
        imagecodecs.zstd_encode(bytes(1 << 28)),
        b"\x28\xb5\x2f\xfd\0\x50" + b"\x02\0\x10x" * 500_000,  # each block is one byte, 131,072 times
        imagecodecs.lz4f_encode(bytes(1 << 24)),
        b"\x50\x2a\x4d\x18\0\0\0\0" * 100_000,
    ],
)
def test_hostile_starts_take_no_time(data: bytes) -> None:
    start = time.process_time()
    identify(io.BytesIO(data))
    assert time.process_time() - start < 1.0


# -- DICOM without its mark ------------------------------------------------------------------------------------------


def plain(source: Dataset, *, implicit: bool, little: bool) -> bytes:
    """The data set alone, without preamble and meta group, in an encoding."""
    dataset = Dataset()
    for element in copy.deepcopy(source):
        dataset.add(element)
    if not little:
        dataset["PixelData"].value = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    write_dataset(stream, dataset)
    return bytes(stream.getvalue())


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("first_group", [0x0008, 0x0010, 0x0028])
@pytest.mark.parametrize("suffix", ["", ".dcm", ".txt", ".001"])
def test_dicom_without_preamble_and_meta_group_is_read(
    implicit: bool, little: bool, first_group: int, suffix: str, tmp_path: Path
) -> None:
    source = pydicom.dcmread(io.BytesIO(CT))
    whole = open_image(CT).renderings(0)
    for element in list(source):
        if element.tag.group < first_group:
            del source[element.tag]
    data = plain(source, implicit=implicit, little=little)
    path = made(tmp_path / "folder", data, f"IM0001{suffix}")
    assert judged(path) == "read"
    for one, other in zip(open_image(data, name_hint=path.name).renderings(0), whole, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["CT_small.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm"])
def test_dicom_with_a_meta_group_but_no_preamble_is_read_by_its_transfer_syntax(name: str, tmp_path: Path) -> None:
    whole = Path(str(get_testdata_file(name))).read_bytes()
    data = whole[132:]
    assert judged(made(tmp_path / "folder", data, "IM0001")) == "read"
    for one, other in zip(open_image(data).renderings(0), open_image(whole).renderings(0), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["OT-PAL-8-face.dcm", "ExplVR_LitEndNoMeta.dcm", "rtstruct.dcm", "MR_small_implicit.dcm"])
def test_dicom_of_other_makers_is_known_without_its_mark(name: str, tmp_path: Path) -> None:
    found = get_testdata_file(name)
    if found is None:
        pytest.skip(f"this pydicom has no {name}")
    whole = Path(str(found)).read_bytes()
    bare = whole[132:] if whole[128:132] == b"DICM" else whole
    assert judged(made(tmp_path / "folder", bare, "1")) == "read"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<HHI", 8, 5, 10) + b"ISO_IR 100",  # one element is too little
        struct.pack("<HHI", 8, 5, 10) + b"ISO_IR 100" + struct.pack("<HHI", 8, 4, 4) + b"abcd" + bytes(99),  # not ascending
        struct.pack("<HHI", 8, 5, 1 << 30) + bytes(200),
        struct.pack("<HH2sH", 8, 5, b"ZZ", 10) + b"ISO_IR 100" + bytes(200),
    ],
)
def test_what_only_resembles_dicom_is_not_taken_for_it(data: bytes) -> None:
    assert not isinstance(identify(io.BytesIO(data)), Kind)


def dicomdir(folder: Path, *, icon: bool) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["IM0001"]
    if icon:
        pixels = Dataset()
        pixels.Rows = pixels.Columns = 64
        pixels.PixelData = bytes(4096)
        pixels["PixelData"].VR = "OW"
        record.IconImageSequence = Sequence([pixels])
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.DirectoryRecordSequence = Sequence([record])
    folder.mkdir()
    dataset.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def test_a_dicomdir_is_skipped_unless_it_holds_icons_of_images(tmp_path: Path) -> None:
    assert judged(dicomdir(tmp_path / "without", icon=False)) == "dicomdir"
    assert judged(dicomdir(tmp_path / "with", icon=True)) == "unsupported"
    for name in ("DICOMDIR", "DICOMDIR-implicit", "DICOMDIR-bigEnd"):
        data = Path(str(get_testdata_file(name))).read_bytes()
        assert judged(made(tmp_path / name, data, "DICOMDIR")) == "dicomdir"


# -- the commands ----------------------------------------------------------------------------------------------------


def lcmem(*arguments: str | Path) -> tuple[int, list[dict[str, object]], str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return done.exit_code, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.output


@pytest.fixture
def bundle(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCMEM_ONNX_BUNDLE", str(tiny_bundle))


@pytest.fixture
def mixed(images: Path) -> Path:
    """Two images that are read, two that are not, and five other files."""
    for name in ("2.png", "3.png", "4.png", "5.png"):
        (images / name).unlink()
    made(images, b"8BPS\0\1" + bytes(100), "a")
    made(images / "below", gzip.compress(nifti()), "b.nii.gz")
    made(images, b"notes", "notes.md")
    made(images, b"x = 1", "code.py")
    made(images / "below", zipped({"a.png": png()}), "c.zip")
    made(images, zipped(WORD), "d.docx")
    made(images, b"", "e")
    return images


SKIPPED = {"text": 2, "archive": 1, "document": 1, "empty": 1}


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_scan_and_index_say_what_was_skipped_and_fail_on_what_was_not_read(quiet: list[str], mixed: Path, tmp_path: Path) -> None:
    index = tmp_path / "idx"
    code, lines, _ = lcmem("index", "build", mixed, "--index", index, "--json", *quiet)
    counts = {"new": 2, "known": 0, "copy": 0, "error": 2, "errors": {"unsupported": 2}, "skipped": SKIPPED}
    assert (code, lines[-1]) == (2, {"schema_version": 1, "summary": counts})
    code, lines, _ = lcmem("index", "add", mixed, "--index", index, "--json", *quiet)
    assert (code, lines[-1]["summary"]) == (2, {**counts, "new": 0, "known": 2})
    code, lines, _ = lcmem("scan", mixed, "--index", index, "--json", *quiet)
    assert lines[-1] == {"schema_version": 1, "summary": {"clear": 0, "match": 2, "error": 2, "skipped": SKIPPED}}
    assert (code, [line["reason"] for line in lines[:-1]].count("unsupported")) == (2, 2)
    for command in (["index", "add", mixed, "--index", index], ["scan", mixed, "--index", index]):
        code, _, said = lcmem(*command, *quiet)
        assert code == 2
        if command[0] == "scan" or not quiet:
            assert "skipped: 2 text, 1 document, 1 archive, 1 empty" in said or "skipped: 2 text" in said
            assert "(archive files may contain images, which were not screened)" in " ".join(said.split())


@pytest.mark.usefixtures("bundle")
def test_without_images_that_are_not_read_the_exit_code_is_that_of_the_verdicts(mixed: Path, tmp_path: Path) -> None:
    (mixed / "a").unlink()
    (mixed / "below" / "b.nii.gz").unlink()
    code, lines, _ = lcmem("index", "build", mixed, "--index", tmp_path / "idx", "--json", "-q")
    assert (code, lines[-1]["summary"]["errors"], lines[-1]["summary"]["skipped"]) == (0, {}, SKIPPED)  # type: ignore[index]
    code, lines, _ = lcmem("scan", mixed, "--index", tmp_path / "idx", "--json", "-q")
    assert (code, lines[-1]["summary"]) == (1, {"clear": 0, "match": 2, "error": 0, "skipped": SKIPPED})


FILES = st.lists(
    st.sampled_from([("png", png()), ("", CT), *((name[:3], data) for name, data in IMAGES.items())])
    | st.sampled_from([("", data) for name, (_, data) in OTHERS.items() if name not in ("SQLite", "old tar")]),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(FILES)
def test_every_file_of_a_walk_is_counted_once(files: list[tuple[str, bytes]]) -> None:
    """Found, refused and skipped add up to the files that are there, so nothing is lost in silence."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for number, (_, data) in enumerate(files):
            made(Path(folder) / str(number % 3), data, f"{number}")
        items = [item for item in walk([folder]) if item.path != Path(folder)]
        assert sorted(item.path.name for item in items) == sorted(str(number) for number in range(len(files)))
        kinds = Counter(type(item) for item in items)
        assert sum(kinds.values()) == len(files)
        assert all(isinstance(item.reason, SkipReason) for item in items if isinstance(item, Skipped))


@pytest.mark.usefixtures("bundle")
@settings(max_examples=5, deadline=None)
@given(FILES)
def test_the_summary_adds_up_to_the_files_walked(tiny_bundle: Path, files: list[tuple[str, bytes]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for number, (_, data) in enumerate([("png", png()), *files]):
            made(Path(folder), data, f"{number}")
        code, lines, _ = lcmem("scan", folder, "--against", EXAMPLES / "queries/other-coffee.jpg", "--json", "-q")
    summary = lines[-1]["summary"]
    assert isinstance(summary, dict)
    verdicts = Counter(line["verdict"] for line in lines[:-1])
    assert {name: summary[name] for name in ("clear", "match", "error")} == {"clear": 0, "match": 0, "error": 0, **verdicts}
    assert len(lines) - 1 + sum(summary["skipped"].values()) == len(files) + 1
    assert code == (2 if verdicts["error"] else 1 if verdicts["match"] else 0)
