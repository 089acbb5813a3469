"""Read what an audit compares: the reference, the released images and the hold-out, embedded and with their patients and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import GalleryError, UsageError
from ..gallery import Gallery
from ..images.reader_version import READER_VERSION
from ..privacy import ReportPseudonyms, SiteKey
from ..screening import Screener
from .embedding import Look
from .embedding_cache import Cache
from .output_folder import PRIVATE
from .patients import Patients
from .reference import Reference, is_index
from .request import Progress, Request
from .sets import ImageSet, Item, SetFiles, embed_set, find_images, read_labels
from .tta import LOOKS, VERSION

__all__ = ["HOLDOUT", "REFERENCE", "RELEASED", "Inputs", "find_sets", "kept_back", "read_inputs"]

RELEASED, REFERENCE, HOLDOUT = "the released images", "the reference", "the hold-out"
"""The sets, as messages name them."""

Warn = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What an audit compares.

    Attributes:
        reference: what the released images are compared with.
        released, holdout: the other two sets, embedded; no hold-out where none was given.
        labels: of released images, by name.
        pseudonyms: of reference images.
        caveats: what could not be done, in words.
    """

    reference: Reference
    released: ImageSet = field(repr=False)
    holdout: ImageSet | None = field(repr=False)
    labels: Mapping[str, Mapping[str, str]] = field(repr=False)
    pseudonyms: ReportPseudonyms
    caveats: tuple[str, ...]


def kept_back(request: Request) -> dict[str, Path]:
    """Return the folders of the sets that are not released."""
    holdout = {HOLDOUT: request.holdout} if request.holdout else {}
    return {REFERENCE: request.reference, **holdout}


def find_sets(request: Request) -> dict[str, SetFiles]:
    """Find the images of all sets that are folders, before anything is written or embedded.

    Raises:
        UsageError: a set has no image, or cannot be searched.
    """
    folders = {RELEASED: request.released, **kept_back(request)}
    return {what: find_images(folder, what) for what, folder in folders.items() if what != REFERENCE or not is_index(folder)}


def read_inputs(
    screener: Screener,
    request: Request,
    files: Mapping[str, SetFiles],
    progress: Progress,
    warn: Warn,
    resources: ExitStack,
) -> Inputs:
    """Embed all sets, and read the lists of patients and labels.

    Args:
        screener: with the bundle to use.
        request: what was asked for; its output folder is there.
        files: what `find_sets` found.
        progress: see `Progress`.
        warn: is given what the user should see at once, a line each.
        resources: closes the index, which the reference needs until the audit is done.

    Raises:
        UsageError: a list cannot be read, or does not fit the images.
        GalleryError: the index cannot be used, or nothing of the reference can be read.
    """
    patients = Patients(request.patients) if request.patients else None
    gallery = _open_index(request.reference, screener, warn, resources) if is_index(request.reference) else None
    pseudonyms = ReportPseudonyms(request.out / PRIVATE / "pseudonyms.key")
    indexed = Reference(screener, gallery, request.search) if gallery is not None else None
    if indexed is not None:
        resources.callback(indexed.close)
    patient_key = _choose_patient_key(request, indexed, SiteKey(pseudonyms.secret), warn)
    reader = _SetReader(screener, request, files, patient_key.key, patients, progress)
    if indexed is None:
        reference = _embed_reference(screener, request, reader)
    else:
        reference = indexed
        reference.name_patients(patients, comparable=patient_key.is_index_key)
    looks = tuple(LOOKS.values()) if request.tta else ()
    released = reader.read(request.released, RELEASED, looks)
    holdout = reader.read(request.holdout, HOLDOUT, looks) if request.holdout else None
    if patients:
        patients.check_used()
    caveats = list(patient_key.caveats)
    if holdout and not reference.has_keys and any(item.patient for item in holdout.items):
        caveats.append("The hold-out's patients could not be compared with the reference's: the index was not read as a whole.")
    labels = read_labels(request.labels, [item.name for item in released.items]) if request.labels else {}
    return Inputs(reference, released, holdout, labels, pseudonyms, tuple(caveats))


def _open_index(folder: Path, screener: Screener, warn: Warn, resources: ExitStack) -> Gallery:
    gallery = resources.enter_context(Gallery.open(folder, screener.bundle, warn=warn))
    if not len(gallery):
        raise GalleryError(f"{folder} holds no images, so nothing can be found in it: add some first")
    return gallery


def _embed_reference(screener: Screener, request: Request, reader: _SetReader) -> Reference:
    images = reader.read(request.reference, REFERENCE, ())
    if not len(images.embeddings):
        raise GalleryError(f"{request.reference} holds no image that can be read: there is nothing to compare with")
    return Reference(screener, images, request.search)


@dataclass(frozen=True, eq=False)
class _PatientKey:
    """The key of the patients' pseudonyms.

    Attributes:
        key: the key.
        is_index_key: whether it is the index's own, so that its patients can be compared with the other sets'.
        caveats: why they cannot, in words.
    """

    key: SiteKey
    is_index_key: bool = False
    caveats: tuple[str, ...] = ()


def _choose_patient_key(request: Request, indexed: Reference | None, report_key: SiteKey, warn: Warn) -> _PatientKey:
    """Take the index's site key where the hold-out's patients are to be compared with the index's, else the report's own key."""
    compares = bool(indexed and request.holdout and indexed.patients and not request.ignore_patients)
    if indexed is None or indexed.gallery is None or not compares:
        return _PatientKey(report_key)
    try:
        return _PatientKey(indexed.gallery.site_key(), is_index_key=True)
    except UsageError as error:
        warn(f"patients of the hold-out are not compared with the index's: {error}")
        caveat = "The hold-out's patients could not be compared with the reference's, for want of the site key."
        return _PatientKey(report_key, caveats=(caveat,))


class _SetReader:
    """Embeds sets. What was embedded before, by this model in this way, comes from the cache in the report's private part."""

    def __init__(
        self,
        screener: Screener,
        request: Request,
        files: Mapping[str, SetFiles],
        key: SiteKey,
        patients: Patients | None,
        progress: Progress,
    ) -> None:
        self._screener, self._request, self._files = screener, request, files
        self._key, self._patients, self._progress = key, patients, progress

    def read(self, folder: Path, what: str, looks: Sequence[Look]) -> ImageSet:
        """Embed the set `what`, each frame as it is, or in all ways to look at it if there are any."""
        files, bundle = self._files[what], self._screener.bundle
        images = ImageSet(max(1, len(looks)), bundle.features, files.skipped)
        model = f"{bundle.fingerprint}/reader{READER_VERSION}" + (f"/tta{VERSION}" if looks else "")
        with Cache(self._request.out / PRIVATE / "embeddings.sqlite", model, bundle.features, self._key.name) as cache:
            steps = embed_set(self._screener, files.images, folder, images, cache, looks, self._key)
            for _ in self._progress(steps, len(files.images), f"reading {what}"):
                pass
        images.items = [self._with_patient(item) for item in images.items]
        return images

    def _with_patient(self, item: Item) -> Item:
        """Return the item with the patient that a list gives it, or else the one of its header."""
        listed = self._patients.of(item.path) if self._patients else None
        return replace(item, patient=listed or (None if self._request.ignore_patients else item.patient))
