"""Compare our rendering of raster images with ImageMagick's, format by format and feature by feature.

Each combination (format, mode, bits, transparency, orientation, interlacing, tiling, compression) is written by ImageMagick,
Pillow, tifffile or imagecodecs. It is rendered here, and by a reader that shares no code with us: ImageMagick where it reads the
file, else the pixels that were written. On white both must be the same to within the noise of two decoders. An error that says so
is counted; a silent difference is a failure. docs/formats.md lists the known differences, which are named here.

    python benchmarks/raster_sweep.py              # all, with a line for each that is not the same
    python benchmarks/raster_sweep.py --every 7    # each seventh
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from lcmem_onnx.runtime.errors import ImageError
from lcmem_onnx.runtime.images.image import open_image
from numpy.typing import NDArray
from PIL import Image

MEAN, MOST = 1.5, 10
"""Levels, of 255, by which two decoders may differ: on average, and in all but one in a thousand samples."""
WIDTH, HEIGHT = 96, 64
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Combination:
    """One file to be compared.

    Attributes:
        name: what is special about it.
        suffix: of the file's name.
        write: gives its content.
        expected: the pixels on white, where ImageMagick is not to be asked.
        known: why ours differs, where that is known.
    """

    name: str
    suffix: str
    write: Callable[[], bytes]
    expected: Callable[[], Pixels] | None = None
    known: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a combination: same, refused, known or different; how far apart the two are; and why."""

    kind: str
    mean: float = 0.0
    most: float = 0.0
    detail: str = ""


def base() -> Pixels:
    """An image with edges, slopes and saturated colors."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    red = 127.5 + 127.5 * np.sin(x / 9) * np.cos(y / 11)
    green = 255 * x / (WIDTH - 1)
    blue = 255 * (((x // 12) + (y // 8)) % 2)
    image = np.stack([red, green, blue], axis=2)
    image[20:30, 10:40] = (250, 20, 30)
    image[0, 0], image[0, 1] = 0, 255
    return np.rint(image).astype(np.uint8)


def grey() -> Pixels:
    """The same in grey, from black to white."""
    values = base().astype(float) @ (0.3, 0.6, 0.1)
    return np.rint(255 * (values - values.min()) / (values.max() - values.min())).astype(np.uint8)


def opacity() -> Pixels:
    """Transparent at the left, opaque at the right."""
    x = np.mgrid[0:HEIGHT, 0:WIDTH][1]
    return np.clip((x - 16) * 4, 0, 255).astype(np.uint8)


def on_white(colors: Pixels, alpha: Pixels) -> Pixels:
    """Pillow's flattening."""
    image = Image.merge("RGBA", [Image.fromarray(band) for band in (*np.moveaxis(colors, 2, 0), alpha)])
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def as_rgb(values: Pixels) -> Pixels:
    """Grey as RGB."""
    return np.repeat(values[..., None], 3, axis=2)


def magick(arguments: str, source: Pixels, target: str) -> Callable[[], bytes]:
    """A file that ImageMagick writes from a PNG."""

    def write() -> bytes:
        command = ["convert", "png:-", *arguments.split(), target]
        return subprocess.run(command, input=saved("PNG", source)(), capture_output=True, check=True).stdout

    return write


def saved(form: str, values: Pixels, mode: str | None = None, **options: Any) -> Callable[[], bytes]:
    """A file that Pillow writes."""

    def write() -> bytes:
        image = Image.fromarray(values)
        file = io.BytesIO()
        (image.convert(mode) if mode else image).save(file, form, **options)
        return file.getvalue()

    return write


def by_magick(content: bytes, suffix: str) -> Pixels:
    """ImageMagick's rendering on white: RGB, uint8."""
    command = ["convert", f"{suffix}:-[0]", "-auto-orient", "-background", "white", "-flatten", "-colorspace", "sRGB"]
    done = subprocess.run(
        [*command, "-depth", "8", "-type", "TrueColor", "png24:-"], input=content, capture_output=True, check=True
    )
    return np.asarray(Image.open(io.BytesIO(done.stdout)).convert("RGB"))


def compared(combination: Combination) -> Outcome:
    """Write, render twice, compare."""
    content = combination.write()
    try:
        ours = open_image(content, name_hint=f"x.{combination.suffix}").renderings(0)[0].astype(int)
    except ImageError as error:
        return Outcome("refused", detail=f"{error.reason}: {error}")
    theirs = (combination.expected() if combination.expected else by_magick(content, combination.suffix)).astype(int)
    if ours.shape != theirs.shape:
        return Outcome("known" if combination.known else "different", detail=f"{ours.shape} instead of {theirs.shape}")
    apart = np.abs(ours - theirs)
    mean, most = float(apart.mean()), float(np.quantile(apart, 0.999))
    if mean <= MEAN and most <= MOST:
        return Outcome("same", mean, most)
    return Outcome("known" if combination.known else "different", mean, most, combination.known)


def combinations() -> Iterator[Combination]:
    """All of them."""
    yield from _png()
    yield from _tiff()
    yield from _tiff_samples()
    yield from _jpeg()
    yield from _simple()
    yield from _wavelets()
    yield from _netpbm()
    yield from _high_efficiency()


def _png() -> Iterator[Combination]:
    with_alpha = np.dstack([base(), opacity()])
    grey_alpha = np.dstack([as_rgb(grey()), opacity()])
    for interlace, depth in itertools.product(("None", "Line"), (8, 16)):
        for kind, source in ((0, as_rgb(grey())), (2, base()), (4, grey_alpha), (6, with_alpha)):
            options = f"-interlace {interlace} -define png:color-type={kind} -define png:bit-depth={depth}"
            yield Combination(f"png type {kind} {depth} bits {interlace}", "png", magick(options, source, "png:-"))
    for interlace, depth in itertools.product(("None", "Line"), (1, 2, 4, 8)):
        options = f"-interlace {interlace} -colors {2**depth} -define png:color-type=3 -define png:bit-depth={depth}"
        yield Combination(f"png palette {depth} bits {interlace}", "png", magick(options, base(), "png:-"))
    for depth in (1, 2, 4):
        options = f"-define png:color-type=0 -define png:bit-depth={depth}"
        yield Combination(f"png grey {depth} bits", "png", magick(options, as_rgb(grey()), "png:-"))
    levels = (grey() // 17 * 17).astype(np.uint8)
    for mode, key in (("L", int(levels[10, 10])), ("RGB", tuple(int(level) for level in base()[25, 20]))):
        source = levels if mode == "L" else base()
        yield Combination(f"png {mode} with one transparent color", "png", saved("PNG", source, transparency=key))
    for bits in (1, 2, 4):
        yield Combination(f"png grey {bits} bits with a transparent level", "png", lambda bits=bits: keyed_grey_png(bits))
    yield Combination("png palette with opacities", "png", magick("-colors 200", with_alpha, "png8:-"))
    yield from _oriented("png", "PNG")


def keyed_grey_png(bits: int) -> bytes:
    """A grey PNG of few bits whose middle level is transparent: no library here writes one."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    values = grey() >> (8 - bits)
    planes = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(HEIGHT, -1)
    rows = np.packbits(planes, axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    key = chunk(b"tRNS", struct.pack(">H", (1 << bits) // 2))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def _oriented(suffix: str, form: str, **options: Any) -> Iterator[Combination]:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        expected = np.asarray(_turned(Image.fromarray(base()), orientation))
        write = saved(form, base(), exif=exif, **options)
        yield Combination(f"{suffix} orientation {orientation}", suffix, write, lambda expected=expected: expected)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(methods[orientation]) if orientation in methods else image


_TIFF_LAYOUTS = {
    "strips": "",
    "tiles": "-define tiff:tile-geometry=32x32",
    "few rows, big endian": "-endian MSB -define tiff:rows-per-strip=5",
    "planes": "-interlace Plane",
}


def _tiff() -> Iterator[Combination]:
    with_alpha = np.dstack([base(), opacity()])
    for compression, (layout, options) in itertools.product(("None", "LZW", "Zip", "RLE", "Zstd", "LZMA"), _TIFF_LAYOUTS.items()):
        for kind, source in (("TrueColor", base()), ("Grayscale", as_rgb(grey())), ("TrueColorMatte", with_alpha)):
            for depth in (8, 16):
                name = f"tiff {kind} {depth} bits {compression} {layout}"
                yield Combination(
                    name, "tiff", magick(f"-type {kind} -depth {depth} -compress {compression} {options}", source, "tiff:-")
                )
        yield Combination(
            f"tiff palette {compression} {layout}",
            "tiff",
            magick(f"-type Palette -compress {compression} {options}", base(), "tiff:-"),
        )
        yield Combination(
            f"tiff cmyk {compression} {layout}",
            "tiff",
            magick(f"-colorspace CMYK -compress {compression} {options}", base(), "tiff:-"),
        )
    for compression in ("None", "Fax", "Group4", "LZW", "RLE"):
        for name, options in (
            ("", ""),
            ("min-is-white", "-define quantum:polarity=min-is-white"),
            ("lsb", "-define tiff:fill-order=lsb"),
        ):
            write = magick(f"-monochrome {options} -compress {compression}", base(), "tiff:-")
            yield Combination(f"tiff bilevel {compression} {name}", "tiff", write)
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        write = magick(f"-quality 95 -compress JPEG -sampling-factor {sampling}", base(), "tiff:-")
        yield Combination(f"tiff jpeg {sampling}", "tiff", write)
    yield Combination("tiff jpeg grey", "tiff", magick("-quality 95 -compress JPEG -type Grayscale", as_rgb(grey()), "tiff:-"))
    yield Combination("tiff jpeg cmyk", "tiff", magick("-quality 95 -compress JPEG -colorspace CMYK", base(), "tiff:-"))
    lab = "colors outside of sRGB are clipped otherwise"
    yield Combination("tiff L*a*b*", "tiff", magick("-colorspace Lab -depth 8", base(), "tiff:-"), known=lab)
    yield Combination("tiff L*a*b* 16 bits", "tiff", magick("-colorspace Lab -depth 16", base(), "tiff:-"))
    yield Combination("tiff YCbCr", "tiff", magick("-colorspace YCbCr -depth 8", base(), "tiff:-"))
    for alpha in ("associated", "unassociated", "unspecified"):
        for depth in (8, 16):
            write = magick(f"-depth {depth} -define tiff:alpha={alpha}", with_alpha, "tiff:-")
            known = "an unspecified extra channel is not opacity; it is flagged" if alpha == "unspecified" else ""
            yield Combination(f"tiff {alpha} alpha {depth} bits", "tiff", write, known=known)
    for bits in (2, 4):
        yield Combination(f"tiff grey {bits} bits", "tiff", magick(f"-depth {bits} -type Grayscale", as_rgb(grey()), "tiff:-"))
    for number, name in enumerate(
        ("TopLeft", "TopRight", "BottomRight", "BottomLeft", "LeftTop", "RightTop", "RightBottom", "LeftBottom"), 1
    ):
        for compression in ("LZW", "JPEG"):
            write = magick(f"-compress {compression} -quality 95 -orient {name}", base(), "tiff:-")
            expected = np.asarray(_turned(Image.fromarray(base()), number))
            yield Combination(f"tiff orientation {number} {compression}", "tiff", write, lambda expected=expected: expected)


def _tiff_samples() -> Iterator[Combination]:
    """Sample formats, by tifffile: its pixels are what is expected."""
    import tifffile

    scaled = grey() / 255.0
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"):
        dtype = np.dtype(name)
        span = np.iinfo(dtype) if dtype.kind in "iu" else None
        stored = (scaled if span is None else span.min + scaled * (float(span.max) - span.min)).astype(dtype)
        for order, compression, photometric in itertools.product("<>", (None, "zlib"), ("minisblack", "miniswhite")):

            def write(
                stored: Any = stored, order: str = order, compression: str | None = compression, photometric: str = photometric
            ) -> bytes:
                file = io.BytesIO()
                tifffile.imwrite(file, stored, byteorder=order, compression=compression, photometric=photometric)
                return file.getvalue()

            shown = as_rgb(255 - grey() if photometric == "miniswhite" else grey())
            yield Combination(f"tiff {name} {order} {compression} {photometric}", "tiff", write, lambda shown=shown: shown)
        if (dtype.kind == "u" and dtype.itemsize <= 2) or name == "float32":
            colors = (base() / 255.0 if span is None else base().astype(np.int64) * (span.max // 255)).astype(dtype)

            def write_colors(colors: Any = colors) -> bytes:
                file = io.BytesIO()
                tifffile.imwrite(file, colors, photometric="rgb", compression="zlib", predictor=True)
                return file.getvalue()

            yield Combination(f"tiff rgb {name} with a predictor", "tiff", write_colors, base)


def _jpeg() -> Iterator[Combination]:
    for interlace, sampling in itertools.product(("None", "Plane"), ("4:4:4", "4:2:2", "4:2:0", "4:1:1")):
        options = f"-quality 95 -interlace {interlace} -sampling-factor {sampling}"
        yield Combination(f"jpeg {sampling} {interlace}", "jpeg", magick(options, base(), "jpeg:-"))
    yield Combination("jpeg grey", "jpeg", magick("-quality 95 -colorspace Gray", as_rgb(grey()), "jpeg:-"))
    yield Combination("jpeg cmyk", "jpeg", magick("-quality 95 -colorspace CMYK", base(), "jpeg:-"))
    yield Combination("jpeg rgb", "jpeg", magick("-quality 95 -colorspace RGB -set colorspace sRGB", base(), "jpeg:-"))
    yield from _oriented("jpeg", "JPEG", quality=98, subsampling=0)
    deep = (grey().astype(np.uint16) << 4) + (grey() >> 4)
    yield Combination(
        "jpeg lossless 8 bits",
        "jpeg",
        lambda: imagecodecs.jpeg8_encode(grey(), lossless=True),
        lambda: as_rgb(grey()),
    )
    yield Combination(
        "jpeg lossless rgb",
        "jpeg",
        lambda: imagecodecs.jpeg8_encode(base(), lossless=True, colorspace="RGB", outcolorspace="RGB"),
        base,
    )
    yield Combination(
        "jpeg 12 bits", "jpeg", lambda: imagecodecs.jpeg8_encode(deep, level=95, bitspersample=12), lambda: as_rgb(grey())
    )
    for values, name in ((grey(), "grey"), (base(), "rgb"), (deep, "12 bits")):
        shown = values if values.ndim == 3 else as_rgb(grey())
        yield Combination(
            f"jpeg-ls {name}", "jls", lambda values=values: imagecodecs.jpegls_encode(values), lambda shown=shown: shown
        )


def _simple() -> Iterator[Combination]:
    with_alpha = np.dstack([base(), opacity()])
    binary = np.dstack([base(), np.where(opacity() > 127, 255, 0).astype(np.uint8)])
    for interlace in ("None", "Line"):
        yield Combination(f"gif {interlace}", "gif", magick(f"-interlace {interlace}", base(), "gif:-"))
        yield Combination(f"gif transparent {interlace}", "gif", magick(f"-interlace {interlace}", binary, "gif:-"))
    yield Combination("gif grey", "gif", saved("GIF", grey()))
    for form in ("bmp", "bmp2", "bmp3"):
        yield Combination(f"{form} 24 bits", "bmp", magick("", base(), f"{form}:-"))
        yield Combination(f"{form} palette", "bmp", magick("-colors 200 -type Palette", base(), f"{form}:-"))
        yield Combination(f"{form} 16 colors", "bmp", magick("-colors 16 -type Palette", base(), f"{form}:-"))
        yield Combination(f"{form} bilevel", "bmp", magick("-monochrome", base(), f"{form}:-"))
    yield Combination("bmp run lengths", "bmp", magick("-colors 200 -type Palette -compress RLE", base(), "bmp:-"))
    yield Combination("bmp with opacity", "bmp", magick("", with_alpha, "bmp:-"))
    for subtype in ("RGB555", "RGB565"):
        yield Combination(f"bmp {subtype}", "bmp", magick(f"-define bmp:subtype={subtype}", base(), "bmp:-"))
    for compression, (name, source) in itertools.product(
        ("None", "RLE"), (("rgb", base()), ("rgba", with_alpha), ("grey", as_rgb(grey())))
    ):
        kind = "-type Grayscale" if name == "grey" else ""
        yield Combination(f"tga {name} {compression}", "tga", magick(f"{kind} -compress {compression}", source, "tga:-"))
    yield Combination("tga palette", "tga", magick("-colors 200 -type Palette", base(), "tga:-"))
    yield Combination("tga from the bottom", "tga", saved("TGA", base(), orientation=-1))
    shown = on_white(as_rgb(grey()), opacity())  # ImageMagick takes these 16 bits for RGB555
    yield Combination("tga grey with opacity", "tga", saved("TGA", np.dstack([grey(), opacity()])), lambda shown=shown: shown)
    for lossless in (True, False):
        for name, source in (("rgb", base()), ("rgba", with_alpha)):
            options = f"-quality 95 -define webp:lossless={str(lossless).lower()}"
            known = "" if lossless else "two upsamplers of chroma"
            yield Combination(f"webp {name} lossless {lossless}", "webp", magick(options, source, "webp:-"), known=known)
    yield from _oriented("webp", "WEBP", lossless=True)


def _wavelets() -> Iterator[Combination]:
    with_alpha = np.dstack([base(), opacity()])
    grey_alpha = np.dstack([grey(), opacity()])
    deep = base().astype(np.uint16) * 257
    for suffix in ("jp2", "j2k"):
        for name, source in (("rgb", base()), ("grey", grey()), ("rgba", with_alpha), ("grey with opacity", grey_alpha)):
            shown = _shown(source)
            write = saved("JPEG2000", source, irreversible=False, no_jp2=suffix == "j2k")
            yield Combination(f"{suffix} {name}", suffix, write, lambda shown=shown: shown)
        for name, source in (("rgb 16 bits", deep), ("grey 16 bits", deep[..., 0])):
            write = partial(imagecodecs.jpeg2k_encode, source, codecformat=suffix, level=0)
            shown = _shown((source >> 8).astype(np.uint8))
            yield Combination(f"{suffix} {name}", suffix, write, lambda shown=shown: shown)
        yield Combination(f"{suffix} lossy", suffix, magick("-quality 90", base(), f"{suffix}:-"))
    for bits in (1, 4, 10, 12):
        values = (grey().astype(np.uint16) * ((1 << bits) - 1) // 255).astype(np.uint8 if bits <= 8 else np.uint16)
        write = partial(imagecodecs.jpeg2k_encode, values, bitspersample=bits, level=0)
        shown = as_rgb(np.rint(values * (255 / ((1 << bits) - 1))).astype(np.uint8))
        yield Combination(f"jp2 grey {bits} bits", "jp2", write, lambda shown=shown: shown)
    for name, source in (("rgb", base()), ("grey", grey()), ("rgba", with_alpha), ("grey with opacity", grey_alpha)):
        for deeper in (False, True):
            values = source.astype(np.uint16) * 257 if deeper else source
            write = partial(imagecodecs.jpegxl_encode, values, lossless=True)
            shown = _shown(source)
            yield Combination(f"jxl {name} {16 if deeper else 8} bits", "jxl", write, lambda shown=shown: shown)
    yield Combination("jxl lossy", "jxl", lambda: imagecodecs.jpegxl_encode(base(), distance=0.05), base)
    floats = partial(imagecodecs.jpegxl_encode, (base() / 255).astype(np.float32), lossless=True)
    yield Combination("jxl rgb float", "jxl", floats, base)
    yield Combination(
        "jxl from jpeg", "jxl", lambda: imagecodecs.jpegxl_encode_jpeg(saved("JPEG", base(), quality=98, subsampling=0)()), base
    )


def _shown(source: Pixels) -> Pixels:
    if source.ndim == 2:
        return as_rgb(source)
    if source.shape[2] == 2:
        return on_white(as_rgb(source[..., 0]), source[..., 1])
    return on_white(source[..., :3], source[..., 3]) if source.shape[2] == 4 else source


def _netpbm() -> Iterator[Combination]:
    with_alpha = np.dstack([base(), opacity()])
    for compress in ("None", "Undefined"):  # texts or bytes
        plain = "-compress none" if compress == "None" else ""
        yield Combination(f"pbm {compress}", "pbm", magick(f"-monochrome {plain}", base(), "pbm:-"))
        for depth in (8, 16):
            yield Combination(f"pgm {compress} {depth} bits", "pgm", magick(f"-depth {depth} {plain}", as_rgb(grey()), "pgm:-"))
            yield Combination(f"ppm {compress} {depth} bits", "ppm", magick(f"-depth {depth} {plain}", base(), "ppm:-"))
    for depth in (8, 16):
        for name, source in (("rgb", base()), ("rgba", with_alpha), ("grey", as_rgb(grey()))):
            kind = "-type Grayscale" if name == "grey" else ""
            yield Combination(f"pam {name} {depth} bits", "pam", magick(f"-depth {depth} {kind}", source, "pam:-"))
    for name, source in (("rgb", base()), ("grey", as_rgb(grey()))):
        kind = "-type Grayscale" if name == "grey" else ""
        yield Combination(f"pfm {name}", "pfm", magick(f"{kind} -endian LSB", source, "pfm:-"))
        yield Combination(f"pfm {name} big endian", "pfm", magick(f"{kind} -endian MSB", source, "pfm:-"))
    for top in (1, 3, 15, 100, 1023, 4095):
        values = (grey().astype(int) * top // 255).astype(">u2" if top > 255 else "u1")
        header = f"P5\n# a comment\n{WIDTH} {HEIGHT}\n{top}\n".encode()
        yield Combination(f"pgm up to {top}", "pgm", lambda header=header, values=values: header + values.tobytes())


def _high_efficiency() -> Iterator[Combination]:
    with_alpha = np.dstack([base(), opacity()])
    for name, source in (("rgb", base()), ("rgba", with_alpha), ("grey", grey())):
        shown = _shown(source)
        write = saved("AVIF", source, quality=100, subsampling="4:4:4")
        yield Combination(f"avif {name}", "avif", write, lambda shown=shown: shown)
    yield from _oriented("avif", "AVIF", quality=100, subsampling="4:4:4")
    for name, source in (("rgb", base()), ("rgba", with_alpha)):
        write = magick("-quality 100 -define heic:chroma=444", source, "heic:-")
        yield Combination(f"heic {name}", "heic", write, known="two upsamplers of chroma")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="each so many")
    parser.add_argument("--only", default="", help="combinations whose name contains this")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each")
    parser.add_argument("--keep", type=Path, help="folder for the files that differ")
    options = parser.parse_args()
    if not shutil.which("convert"):
        parser.error("ImageMagick's convert is not installed")
    counts: Counter[str] = Counter()
    for combination in itertools.islice(combinations(), 0, None, options.every):
        if options.only not in combination.name:
            continue
        try:
            outcome = compared(combination)
        except subprocess.CalledProcessError as error:
            outcome = Outcome("not written", detail=error.stderr.decode(errors="replace")[:120])
        counts[outcome.kind] += 1
        if options.verbose or outcome.kind != "same":
            print(
                f"{outcome.kind:12} {combination.name:50} {outcome.mean:7.2f} {outcome.most:6.1f}  {outcome.detail[:110]}",
                flush=True,
            )
        if options.keep and outcome.kind in ("different", "refused"):
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{combination.name.replace(' ', '_').replace('/', '_')}.{combination.suffix}").write_bytes(
                combination.write()
            )
    print(f"{sum(counts.values())} combinations: {', '.join(f'{count} {kind}' for kind, count in counts.most_common())}")
    return counts["different"] > 0


if __name__ == "__main__":
    sys.exit(main())
