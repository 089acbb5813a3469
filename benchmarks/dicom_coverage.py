"""Which DICOM files decode, and whether to the image that other decoders make of them.

    python benchmarks/dicom_coverage.py [--files]

Reads the files with pixels that pydicom ships, and those of the package pydicom-data (both MIT), and opens each as a scan does.
The first and the last frame are compared with what DCMTK's dcmj2pnm draws of them (Debian: `apt-get install dcmtk`), with the
same window; overlays off. DCMTK reads no JPEG 2000: GDCM's gdcmconv (python-gdcm) unpacks those for it first. Differences are in
levels of 255. Where padding is declared, DCMTK draws it, and we make it black: it is left out of the comparison.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
from lcmem_onnx.runtime.errors import ImageError
from lcmem_onnx.runtime.images.dicom.grayscale import merged_groups, padding_mask
from lcmem_onnx.runtime.images.image import ImageFile, open_image
from lcmem_onnx.runtime.images.preprocess import BLANK_LEVELS
from numpy.typing import NDArray

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
CLOSE = 2


@dataclass(frozen=True)
class Line:
    name: str
    syntax: str
    error: str | None
    difference: int | None
    share: float = 0.0
    by: str = ""


def with_pixels(folder: Path) -> list[Path]:
    """Files that pydicom reads, with pixels at the top."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            dataset = pydicom.dcmread(path, force=True, stop_before_pixels=False)
            if any(word in dataset for word in PIXELS):
                found.append(path)
        except Exception:  # noqa: BLE001  # not DICOM: licences and lists are there too
            continue
    return found


def judge(path: Path, work: Path) -> Line:
    dataset = pydicom.dcmread(path, force=True)
    syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", "")) or "none"
    try:
        image = open_image(path.read_bytes(), name_hint="x.dcm")
        frames = {number: image.frame(number) for number in sorted({0, image.frames - 1})}
    except ImageError as error:
        return Line(path.name, syntax, f"{error.reason}: {error}", None)
    worst, share, by = None, 0.0, ""
    for number, frame in frames.items():
        drawn, by = reference(path, dataset, number, work)
        if drawn is None or drawn.shape != frame.shape:
            continue
        apart = np.abs(frame.astype(int) - drawn).max(axis=2)
        if dataset.get("PixelPaddingValue") is not None and dataset.get("SamplesPerPixel", 1) == 1:
            mask = padding_mask(stored_values(image, number), merged_groups(dataset, number))
            apart = apart if mask is None else np.where(mask, 0, apart)
        worst = max(worst or 0, int(apart.max()))
        share = max(share, float((apart > CLOSE).mean()))
    return Line(path.name, syntax, None, worst, share, by)


def stored_values(image: ImageFile, number: int) -> NDArray[np.int64]:
    return image._source._values(number)  # type: ignore[union-attr]  # what the mask is defined on


def reference(path: Path, dataset: pydicom.Dataset, number: int, work: Path) -> tuple[NDArray[np.uint8] | None, str]:
    """What dcmj2pnm draws, RGB, and by which way; None where it cannot."""
    source, by = path, "DCMTK"
    drawn = draw(source, dataset, number, work)
    if drawn is None and (convert := shutil.which("gdcmconv", path=f"{Path(sys.executable).parent}:/usr/bin")):
        source, by = work / "raw.dcm", "GDCM, DCMTK"
        source.unlink(missing_ok=True)
        subprocess.run([convert, "--raw", str(path), str(source)], capture_output=True, check=False, timeout=60)
        drawn = draw(source, dataset, number, work) if source.exists() else None
    return drawn, by if drawn is not None else ""


def draw(source: Path, dataset: pydicom.Dataset, number: int, work: Path) -> NDArray[np.uint8] | None:
    target = work / "drawn.pnm"
    target.unlink(missing_ok=True)
    tags = merged_groups(dataset, number)
    if tags.get("VOILUTSequence"):
        window = ["+Wl", "1"]
    elif tags.get("WindowWidth") not in (None, "") and tags.get("WindowCenter") not in (None, ""):
        window = ["+Wi", "1"]
        if "WindowWidth" not in dataset:  # in a functional group, where dcmj2pnm does not look
            first = [float(np.atleast_1d(tags[word].value)[0]) for word in ("WindowCenter", "WindowWidth")]
            window = ["+Ww", *(str(figure) for figure in first)]
    else:
        window = ["+Wm"] if int(dataset.get("BitsStored", 16)) > 8 or int(dataset.get("PixelRepresentation", 0)) else ["-W"]
    for look in (window, ["+Wm"]):  # a window that shows nothing is passed over by us
        command = ["dcmj2pnm", "-q", "-O", "+F", str(number + 1), "+op", *look, str(source), str(target)]
        subprocess.run(command, capture_output=True, check=False, timeout=60)
        read = cv2.imread(str(target), cv2.IMREAD_COLOR) if target.exists() else None
        if read is None:
            return None
        if int(read.max()) - int(read.min()) > BLANK_LEVELS:
            break
    if dataset.get("BitsAllocated") == 1:  # whose ones it draws as 128
        read = np.where(read > 0, 255, 0)
    return np.asarray(read[..., ::-1], np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="a line for each file, too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not shutil.which("dcmj2pnm"):
        sys.exit("dcmj2pnm is not there: apt-get install dcmtk")
    import data_store

    sets = {
        "pydicom": Path(pydicom.__file__).parent / "data",
        "pydicom-data": Path(data_store.__file__).parent,
    }
    print("| set | files | decoded | compared | largest difference | within 1 level | pixels that differ by more than 2 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    details: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, root in sets.items():
            lines = [judge(path, Path(folder)) for path in with_pixels(root)]
            decoded = [line for line in lines if line.error is None]
            compared = [line for line in decoded if line.difference is not None]
            figures = Counter(line.difference <= 1 for line in compared if line.difference is not None)
            worst = max(line.difference or 0 for line in compared)
            share = max(line.share for line in compared)
            print(f"| {name} | {len(lines)} | {len(decoded)} | {len(compared)} | {worst} | {figures[True]} | {share:.2%} at most |")
            for line in lines:
                syntax = pydicom.uid.UID(line.syntax).name
                if line.error or line.difference is None or line.difference > CLOSE or arguments.files:
                    what = line.error or (f"{line.difference} ({line.share:.2%}) {line.by}" if line.by else "not compared")
                    details.append(f"{name}: {line.name} [{syntax}]: {what}")
    print()
    print("\n".join(details))


if __name__ == "__main__":
    main()
