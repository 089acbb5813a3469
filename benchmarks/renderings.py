"""How often a copy whose window was changed or lost is found: by the window's rendering alone, and by two renderings.

    python benchmarks/renderings.py

The CT and MR objects that pydicom ships and those of pydicom-data, the first frame of each, once for equal pixels, from 64 x 64
pixels. Each is compared with changed copies of itself, and with the other objects of other studies. The bundled model, at its own
threshold. "One": the images as a viewer shows them; "two": the best of all pairs of renderings.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import data_store
import numpy as np
import pydicom
from lcmem_onnx.runtime.errors import ImageError
from lcmem_onnx.runtime.images.image import open_image
from lcmem_onnx.runtime.model.head import Floats
from lcmem_onnx.runtime.screening import Screener
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

LEAST_SIDE = 64
VOI = ("WindowCenter", "WindowWidth", "VOILUTSequence", "VOILUTFunction")
WINDOWS = {"CT": ((40, 80), (40, 400), (-600, 1500), (400, 1800)), "MR": ()}


def originals() -> Iterator[tuple[str, Path, Dataset]]:
    """Modality, file, header: each image once."""
    seen = set()
    for root in (Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent):
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            try:
                dataset = pydicom.dcmread(path, force=True)
                modality = str(dataset.get("Modality", ""))
                if modality not in WINDOWS or min(dataset.Rows, dataset.Columns) < LEAST_SIDE or dataset.SamplesPerPixel != 1:
                    continue
                stored = hashlib.sha256(dataset.pixel_array.tobytes()).digest()
                open_image(path.read_bytes(), name_hint="x.dcm").views(0, 32)
            except Exception:  # noqa: BLE001  # not DICOM, or not to be decoded
                continue
            if stored not in seen:
                seen.add(stored)
                yield modality, path, dataset


def written(path: Path, change: Callable[[Dataset], None]) -> bytes:
    dataset = pydicom.dcmread(path, force=True)
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(groups) or []:
            if "FrameVOILUTSequence" in group:
                del group.FrameVOILUTSequence
    for word in VOI:
        if word in dataset:
            del dataset[word]
    change(dataset)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=False)
    return file.getvalue()


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def window(centre: float, width: float) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        dataset.WindowCenter, dataset.WindowWidth = round(centre, 3), round(width, 3)

    return change


def without(*words: str) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        for word in words:
            if word in dataset:
                del dataset[word]

    return change


def copies(modality: str, path: Path, dataset: Dataset) -> Iterator[tuple[str, bytes]]:
    """Changed copies of an object, each with the name of the change."""
    stored = dataset.pixel_array if dataset.get("NumberOfFrames", 1) in (1, None) else dataset.pixel_array[0]
    values = stored * float(dataset.get("RescaleSlope") or 1) + float(dataset.get("RescaleIntercept") or 0)
    yield "window dropped", written(path, lambda _: None)
    for centre, width in WINDOWS[modality]:
        yield f"window {centre}/{width}", written(path, window(centre, width))
    for low, high in ((1, 60), (30, 99.9), (50, 95)):
        ends = np.percentile(values, (low, high))
        change = window(float(ends.mean()), max(float(ends[1] - ends[0]), 2))
        data = written(path, change)
        yield f"window of percentiles {low} to {high}", data
        yield f"PNG of percentiles {low} to {high}", png(open_image(data, name_hint="x.dcm").frame(0))
    yield (
        "window, rescale and padding dropped",
        written(path, without("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit")),
    )
    lowest = int(stored.min())
    if int(stored.max()) - lowest <= 0xFFFF:
        yield "16-bit PNG of the stored values", png((stored.astype(np.int64) - min(lowest, 0)).astype(np.uint16))


def main() -> None:
    warnings.simplefilter("ignore")
    screener = Screener()
    threshold, head = screener.bundle.threshold.value, screener.bundle.head

    def score(ones: Floats, others: Floats) -> float:
        return max(float(head.scores(one, others).max()) for one in ones)

    def embedded(data: bytes) -> Floats | None:
        """Of the first frame; None where there is nothing to see."""
        try:
            views = open_image(data, name_hint="x.dcm").views(0, screener.bundle.image_size)
        except ImageError:
            return None
        return screener.encoder.embed_resized(np.stack(views))

    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    gallery: list[tuple[str, str, Floats]] = []
    refused = 0
    for modality, path, dataset in originals():
        own = embedded(path.read_bytes())
        if own is None:
            continue
        gallery.append((modality, str(dataset.get("StudyInstanceUID", path)), own))
        for name, data in copies(modality, path, dataset):
            other = embedded(data)
            if other is None:
                refused += 1
                continue
            found[name].append((score(own[:1], other[:1]) >= threshold, score(own, other) >= threshold))
    views = np.array([len(own) for _, _, own in gallery])
    print(f"{len(gallery)} objects ({sum(kind == 'CT' for kind, _, _ in gallery)} CT), {views.mean():.2f} renderings each")
    print("\n| copy | number | found by one | found by two |\n| --- | --- | --- | --- |")
    found["all"] = [result for results in found.values() for result in results]
    for name, outcomes in found.items():
        one, two = np.mean(outcomes, axis=0)
        print(f"| {name} | {len(outcomes)} | {one:.3f} | {two:.3f} |")
    pairs = [
        (score(a[:1], b[:1]) >= threshold, score(a, b) >= threshold)
        for at, (kind, study, a) in enumerate(gallery)
        for other, another, b in gallery[at + 1 :]
        if kind == other and study != another
    ]
    one, two = np.mean(pairs, axis=0)
    print(f"\nother studies' objects of the same kind, {len(pairs)} pairs: {one:.2%} reach the threshold by one, {two:.2%} by two")
    if refused:
        print(f"{refused} copies show nothing, and would be errors")


if __name__ == "__main__":
    main()
