"""Makes `examples/pictures/` and the images that `export/` proves a bundle on, from scikit-image and pydicom.

The results are committed; this script documents where they come from and how each copy was altered. It needs the `dev`
extra. `gallery/` holds what a hospital would want to protect, `queries/` what is about to leave the house: altered copies of
five gallery images, and four images that have nothing to do with them.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pydicom
import skimage
from PIL import Image, ImageEnhance, ImageFilter
from pydicom.data import get_testdata_file

HERE = Path(__file__).parent
GALLERY, QUERIES = HERE / "pictures" / "gallery", HERE / "pictures" / "queries"
PROOF = HERE.parent / "export" / "pictures"
LONGEST_SIDE = 384
QUALITY = 85


def photograph(name: str) -> Image.Image:
    """A photograph that ships with scikit-image, made smaller."""
    image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return image


def compressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian noise of a standard deviation given as a part of the full range."""
    noise = np.random.default_rng(0).normal(0.0, 255.0 * sigma, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def exported_slice(path: Path) -> Image.Image:
    """A CT slice the way an export tool writes it: the range of its values on 0 to 255, enlarged."""
    values = pydicom.dcmread(path).pixel_array.astype(np.float64)
    levels = (values - values.min()) / (values.max() - values.min()) * 255.0
    return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC)


def main() -> None:
    for folder in (GALLERY, QUERIES, PROOF):
        folder.mkdir(parents=True, exist_ok=True)
    names = ("astronaut.png", "camera.png", "chelsea.png", "retina.jpg", "hubble_deep_field.jpg")
    images = {name.partition(".")[0]: photograph(name) for name in names}
    for name, image in images.items():
        image.save(GALLERY / f"{name}.jpg", quality=QUALITY)
    ct = Path(str(get_testdata_file("CT_small.dcm")))
    shutil.copyfile(ct, GALLERY / "ct-slice.dcm")

    brighter = ImageEnhance.Brightness(images["astronaut"]).enhance(1.3)
    brighter.save(QUERIES / "copy-of-astronaut-brighter.jpg", quality=30)
    noisy(images["camera"], 0.1).save(QUERIES / "copy-of-camera-noisy.jpg", quality=60)
    images["chelsea"].rotate(5, Image.Resampling.BICUBIC).save(QUERIES / "copy-of-chelsea-turned.jpg", quality=QUALITY)
    small = images["retina"].filter(ImageFilter.GaussianBlur(1.5)).resize((192, 192), Image.Resampling.LANCZOS)
    small.save(QUERIES / "copy-of-retina-blurred-half-size.webp", quality=QUALITY)
    compressed(exported_slice(ct), 40).convert("L").save(QUERIES / "copy-of-ct-slice-exported.png")

    for name in ("coffee.png", "rocket.jpg", "clock_motion.png"):
        photograph(name).save(QUERIES / f"other-{name.partition('.')[0].replace('_', '-')}.jpg", quality=QUALITY)
    shutil.copyfile(str(get_testdata_file("MR_small.dcm")), QUERIES / "other-mr-slice.dcm")

    for name in ("astronaut", "chelsea", "retina"):
        images[name].save(PROOF / f"{name}.jpg", quality=QUALITY)
    exported_slice(ct).convert("L").save(PROOF / "ct-slice.png")


if __name__ == "__main__":
    main()
