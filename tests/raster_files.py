"""Small raster files of each format, for several tests."""

from __future__ import annotations

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 80, 60


def colors() -> NDArray[np.uint8]:
    """An image with slopes and edges: RGB, uint8."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.stack([128 + 100 * np.sin(x / 9), y * 4, 255 * ((x // 10 + y // 10) % 2)], axis=2)
    image[20:30, 30:60] = (240, 30, 20)
    return image.astype(np.uint8)


def opacity() -> NDArray[np.uint8]:
    """From transparent at the left to opaque at the right."""
    x = np.mgrid[0:HEIGHT, 0:WIDTH][1]
    return np.clip(x * 5 - 60, 0, 255).astype(np.uint8)


def rgba() -> NDArray[np.uint8]:
    """Both together."""
    return np.dstack([colors(), opacity()])


def saved(values: NDArray[Any] | Image.Image, form: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    file = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(file, form, **options)
    return file.getvalue()


def animated(form: str, count: int = 3, **options: Any) -> bytes:
    """An animation."""
    frames = [Image.fromarray(np.roll(colors(), 9 * number, axis=1)) for number in range(count)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], **options)


def tiff_of(
    directories: list[dict[int, tuple[int, list[int]]]], tail: bytes = b"", children: dict[int, list[int]] | None = None
) -> bytes:
    """A TIFF file of directories without their pixels' places: each gets one strip of `WIDTH` x `HEIGHT` grey bytes.

    Args:
        directories: tag to (type, values), in the order of the pages; type 3 or 4.
        tail: what follows.
        children: a directory's number to those in its SubIFDs, which are no pages then.
    """
    children = children or {}
    nested = {child for group in children.values() for child in group}
    pixels = [np.roll(colors()[..., 0], 13 * number, axis=1).tobytes() for number in range(len(directories))]
    starts = np.cumsum([8, *(len(strip) for strip in pixels)]).tolist()
    sizes = [
        2 + 12 * (len(entries) + 8 + (number in children)) + 4 + 4 * len(children.get(number, ()))
        for number, entries in enumerate(directories)
    ]
    places = np.cumsum([starts[-1], *sizes]).tolist()
    pages = [number for number in range(len(directories)) if number not in nested]
    out = struct.pack("<2sHI", b"II", 42, places[0]) + b"".join(pixels)
    for number, extra in enumerate(directories):
        entries: dict[int, tuple[int, list[int]]] = {
            256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]), 273: (4, [starts[number]]),
            278: (4, [HEIGHT]), 279: (4, [WIDTH * HEIGHT]), **extra,
        }  # fmt: skip
        if number in children:
            entries[330] = (4, [places[child] if child < len(places) - 1 else child for child in children[number]])
        following = pages[pages.index(number) + 1] if number in pages and number != pages[-1] else None
        body, more = struct.pack("<H", len(entries)), b""
        behind = places[number] + 2 + 12 * len(entries) + 4
        for tag, (kind, values) in sorted(entries.items()):
            packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
            if len(packed) > 4:
                body += struct.pack("<HHII", tag, kind, len(values), behind + len(more))
                more += packed
            else:
                body += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
        body += struct.pack("<I", places[following] if following is not None else 0) + more
        out = out.ljust(places[number], b"\0") + body
    return out.ljust(places[-1], b"\0") + tail


def samples() -> dict[str, bytes]:
    """A file of each format and kind of coding, by a name whose part before the hyphen is a suffix."""
    grey = np.ascontiguousarray(colors()[..., 0])
    return {
        "avif": saved(colors(), "AVIF"),
        "avif-opacity": saved(rgba(), "AVIF"),
        "avif-sequence": animated("AVIF"),
        "bmp": saved(colors(), "BMP"),
        "gif": animated("GIF"),
        "jls": imagecodecs.jpegls_encode(colors()),
        "jpg": saved(colors(), "JPEG"),
        "jpg-lossless": imagecodecs.jpeg8_encode(grey, lossless=True),
        "jp2": saved(colors(), "JPEG2000"),
        "j2k-opacity": saved(rgba(), "JPEG2000", no_jp2=True),
        "jxl": imagecodecs.jpegxl_encode(colors()),
        "jxl-animation": imagecodecs.jpegxl_encode(np.stack([colors(), colors()[::-1], colors()[:, ::-1]]), lossless=True),
        "jxl-boxes": imagecodecs.jpegxl_encode(rgba(), usecontainer=True),
        "pam": f"P7\nWIDTH {WIDTH}\nHEIGHT {HEIGHT}\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n".encode() + rgba().tobytes(),
        "pfm": f"PF\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + (colors()[::-1] / 255).astype("<f4").tobytes(),
        "pgm": saved(grey, "PPM"),
        "png": saved(rgba(), "PNG"),
        "png-deep": imagecodecs.png_encode(colors().astype(np.uint16) * 257),
        "ppm": saved(colors(), "PPM"),
        "ppm-plain": f"P3 {WIDTH} {HEIGHT} 255\n".encode() + b" ".join(b"%d" % level for level in colors().ravel()),
        "tga": saved(colors(), "TGA"),
        "tga-lengths": saved(rgba(), "TGA", compression="tga_rle"),
        "tif": saved(colors(), "TIFF", compression="tiff_lzw"),
        "tif-jpeg": saved(colors(), "TIFF", compression="jpeg"),
        "tif-pages": animated("TIFF"),
        "tif-subifd": tiff_of([{}, {}, {}], children={0: [1, 2]}),
        "webp": saved(rgba(), "WEBP"),
    }  # fmt: skip
