"""Galleries in files, for back-ups and moves: out, in, and together.

A file holds a row for each rendering of each image's frame (see `Record`), in blocks, and a manifest: the bundle's fingerprint,
how many rows, and a sha256 over all of them, in their order. It is Parquet where its name ends in `.parquet`, and NumPy's npz
where it ends in `.npz`. Both are written and read a block at a time.

An import is one transaction: whatever is off (a damaged row, another model's, a key that stands for another image here) the
gallery stays as it was. What is there already is left as it is, so an import may be repeated. Settings are not carried: a
threshold that was set for one gallery is none for another. Keys are names of files; where the gallery knows patients
they are replaced by pseudonyms, unless they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from ...errors import GalleryError, GalleryMismatchError, KeyConflictError, UsageError
from ...images.reader_version import FIRST_READER
from ...model.bundle import seal
from ...privacy import PSEUDONYM, SiteKey
from ...system.atomic_write import put_whole
from ..gallery import SITE_KEY, Gallery
from ..storage.records import Entry, Record, check_gallery_name, row_digest
from ..storage.schema import CALIBRATION_SETTING
from .npz import NpzReader, NpzWriter
from .parquet import ParquetReader, ParquetWriter

__all__ = ["BLOCK", "FORMATS", "Imported", "Manifest", "export_gallery", "import_gallery", "merge_galleries", "read_manifest"]

FORMAT, FORMAT_VERSION = "lcmem-onnx-index", 2
"""Version 2 has the column `reader`, and may have pseudonyms for keys."""
READABLE = (1, 2)
BLOCK = 1024
"""Rows in a block: 2 MB at 512 features."""
NAMED_AT_ONCE = 3
Watch = Callable[[Iterable[Record]], Iterable[Record]]
"""Passes rows on, and may show progress while it does."""


class Writer(Protocol):
    def write(self, rows: Sequence[Record]) -> None: ...
    def finish(self, manifest: str) -> None: ...


class Reader(Protocol):
    @property
    def manifest(self) -> str: ...
    def rows(self, version: int) -> Iterator[Record]: ...


Writing: TypeAlias = "Callable[[Path, int], AbstractContextManager[Writer]]"
Reading: TypeAlias = "Callable[[Path, int], AbstractContextManager[Reader]]"
"""Open a file by its path and the bundle's number of features."""
FORMATS: dict[str, tuple[Writing, Reading]] = {".npz": (NpzWriter, NpzReader), ".parquet": (ParquetWriter, ParquetReader)}


@dataclass(frozen=True)
class Manifest:
    """What a file says of itself.

    Attributes:
        fingerprint, features: of the bundle.
        rows, sha256: how many there are, and the digest of them all.
        site_key: the name of the key that its pseudonyms were made with; None where it has none.
        calibrated: whether the gallery it came from had a threshold of its own, which is not in here.
        created: ISO 8601, UTC.
        keys: "paths" where the keys are as the gallery had them, which are names of files; "hashed" where they are pseudonyms
            under the site key.
    """

    fingerprint: str
    features: int
    rows: int
    sha256: str
    site_key: str | None
    calibrated: bool
    created: str
    keys: str = "paths"
    format: str = FORMAT
    format_version: int = FORMAT_VERSION


@dataclass
class Imported:
    """What an import did: frames that were added, and that were there already."""

    added: int = 0
    known: int = 0
    calibrated: bool = False
    conflicts: list[str] = field(default_factory=list)


def export_gallery(
    gallery: Gallery,
    path: Path,
    galleries: Collection[str] | None = None,
    watch: Watch | None = None,
    *,
    with_paths: bool = False,
) -> Manifest:
    """Write a gallery to a file, which appears under its name only when it is whole, and which its owner alone can read.

    Where the patient or study of any image of the gallery is known, also of one that is not written, keys become pseudonyms under
    the site key (see `SiteKey.key`): they are names of files, which may hold names of patients.

    Args:
        path: ends in `.parquet` or `.npz`; it must not exist.
        galleries: the groups to write; None writes all.
        with_paths: leave keys as they are.

    Raises:
        UsageError: another ending, a group that holds nothing, pyarrow is not installed, or the site key cannot be opened.
        GalleryError: the file exists or cannot be written, or the gallery is damaged.
    """
    write = _format(path)[0]
    if path.exists():
        raise GalleryError(f"{path} already exists and is not overwritten: give another file name")
    try:
        key = gallery.site_key() if gallery.holds_pseudonyms() and not with_paths else None
        return put_whole(path, lambda draft: _written(gallery, draft, galleries, watch, write, key), private=True)
    except OSError as error:
        raise GalleryError(f"cannot write {path}: {error.strerror or error}") from error


def _written(
    gallery: Gallery, file: Path, galleries: Collection[str] | None, watch: Watch | None, write: Writing, key: SiteKey | None
) -> Manifest:
    digest, count = hashlib.sha256(), 0
    with write(file, gallery.bundle.features) as writer:
        block: list[Record] = []
        entries = gallery.entries(galleries)
        for row in watch(entries) if watch else entries:
            row = replace(row, key=key.key(row.key)) if key else row
            digest.update(_digest(row, FORMAT_VERSION))
            count += 1
            block.append(row)
            if len(block) == BLOCK:
                writer.write(block)
                block = []
        writer.write(block)
        manifest = Manifest(
            gallery.bundle.fingerprint,
            gallery.bundle.features,
            count,
            digest.hexdigest(),
            gallery.setting(SITE_KEY),
            gallery.setting(CALIBRATION_SETTING) is not None,
            datetime.now(UTC).isoformat(timespec="seconds"),
            "hashed" if key else "paths",
        )
        writer.finish(json.dumps(seal(asdict(manifest))))
    return manifest


def read_manifest(path: Path, features: int) -> Manifest:
    """What a file says of itself.

    Raises:
        GalleryError: it is missing, damaged, or no export.
    """
    with _format(path)[1](path, features) as reader:
        return _manifest(reader, path)


def import_gallery(path: Path, gallery: Gallery, *, without_patients: bool = False, watch: Watch | None = None) -> Imported:
    """Add what a file holds to a gallery: all of it, or nothing.

    Args:
        gallery: opened for writing, of the same bundle.
        without_patients: leave pseudonyms out, of patients and studies: where they were made with another site key.

    Raises:
        GalleryMismatchError: the file is of another model.
        KeyConflictError: keys stand for other images in the gallery; the message names some.
        GalleryError: the file is damaged or no export, or the gallery cannot be written.
        UsageError: pseudonyms of another site key, another ending, or pyarrow is not installed.
    """
    with _format(path)[1](path, gallery.bundle.features) as reader:
        manifest = _manifest(reader, path)
        if manifest.fingerprint != gallery.bundle.fingerprint or manifest.features != gallery.bundle.features:
            raise GalleryMismatchError(
                f"{path} contains embeddings of another model (fingerprint {manifest.fingerprint[:12]}, expected "
                f"{gallery.bundle.fingerprint[:12]}). Import it with its own bundle, then re-embed the images for this one with "
                "'lcmem-onnx index upgrade'"
            )
        key = None if without_patients else manifest.site_key
        _check_site_key(gallery, key, str(path))

        def rows() -> Iterator[Record]:
            digest, count = hashlib.sha256(), 0
            read = reader.rows(manifest.format_version)
            for row in watch(read) if watch else read:
                digest.update(_digest(row, manifest.format_version))
                count += 1
                yield _checked(row, path)
            if count != manifest.rows or digest.hexdigest() != manifest.sha256:
                raise GalleryError(f"{path} is damaged: its rows do not match their checksum. Nothing was imported")

        return _add(gallery, [(rows(), key, manifest.calibrated)], without_patients)


def merge_galleries(
    sources: Sequence[Gallery], target: Gallery, *, without_patients: bool = False, watch: Watch | None = None
) -> Imported:
    """Add all that several galleries hold to another: all of it, or nothing. Arguments and errors as for `import_gallery`."""
    parts = []
    for source in sources:
        if source.bundle.fingerprint != target.bundle.fingerprint:
            raise GalleryMismatchError(f"{source.folder} was made with another model than {target.folder}")
        key = None if without_patients else source.setting(SITE_KEY)
        entries = source.entries()
        parts.append((iter(watch(entries) if watch else entries), key, source.setting(CALIBRATION_SETTING) is not None))
    keys = {key for _, key, _ in parts if key}
    if len(keys) > 1:
        raise UsageError(_other_key("these galleries", *sorted(keys)[:2]))
    for key in keys:
        _check_site_key(target, key, "what is merged")
    return _add(target, parts, without_patients)


def _add(gallery: Gallery, parts: Sequence[tuple[Iterator[Record], str | None, bool]], without_patients: bool) -> Imported:
    """Add rows, which are ordered by image and frame, in one transaction."""
    done = Imported(calibrated=any(calibrated for _, _, calibrated in parts))
    before, seen = len(gallery), 0

    def entries() -> Iterator[Entry]:
        nonlocal seen
        for rows, _, _ in parts:
            for entry in _entries(rows, without_patients):
                seen += 1
                held = gallery.content_of(entry.key, entry.gallery)
                if held is not None and held != entry.content:
                    done.conflicts.append(entry.key)
                else:
                    yield entry
        if done.conflicts:
            keys = list(dict.fromkeys(done.conflicts))
            named = ", ".join(map(repr, keys[:NAMED_AT_ONCE]))
            more = f" and {len(keys) - NAMED_AT_ONCE} more" if len(keys) > NAMED_AT_ONCE else ""
            raise KeyConflictError(
                f"{len(keys)} keys refer to different images in {gallery.folder}: {named}{more}. "
                "Nothing was added: remove these images there, or keep separate indexes"
            )

    # Before the rows: killed in between, pseudonyms of a key that the index does not name could be mixed with another's.
    key = next((key for _, key, _ in parts if key), None)
    claimed = key is not None and gallery.setting(SITE_KEY) is None
    if claimed:
        gallery.set_setting(SITE_KEY, key)
    try:
        gallery.add_all(entries())
    except BaseException:
        if claimed:
            gallery.set_setting(SITE_KEY, None)
        raise
    done.added = len(gallery) - before
    done.known = seen - done.added
    return done


def _entries(rows: Iterator[Record], without_patients: bool) -> Iterator[Entry]:
    """Rows to entries, one a frame with all its renderings, which stand together."""
    block: list[Record] = []
    for row in rows:
        if block and (row.gallery, row.key, row.frame) != (block[0].gallery, block[0].key, block[0].frame):
            yield _entry(block, without_patients)
            block = []
        block.append(row)
    if block:
        yield _entry(block, without_patients)


def _entry(block: Sequence[Record], without_patients: bool) -> Entry:
    first = block[0]
    if [row.rendering for row in block] != list(range(len(block))):
        raise GalleryError(f"the renderings of {first.key[:100]!r} are not contiguous: this is not an exported index")
    patient, study = (None, None) if without_patients else (first.patient, first.study)
    views = np.stack([row.embedding for row in block])
    return Entry(first.key, first.content, first.frames, {first.frame: views}, first.gallery, patient, study, first.reader)


def _digest(row: Record, version: int) -> bytes:
    whose = (row.gallery, row.patient or "", row.study or "")
    reader = (row.reader,) if version > 1 else ()
    values = (row.key, row.content, row.frame, row.frames, row.rendering, *reader, row.embedding.astype("<f4").tobytes())
    return row_digest(*whose, *values)


def _checked(row: Record, path: Path) -> Record:
    """A row that may be believed: the digest shows damage, and not a file that was made to be wrong.

    Raises:
        GalleryError: it may not.
    """
    pseudonyms = all(value is None or PSEUDONYM.fullmatch(value) for value in (row.patient, row.study))
    numbers = 0 <= row.frame < row.frames and row.rendering >= 0 and row.reader >= FIRST_READER and len(row.content) == 32
    values = row.embedding
    if not row.key or not pseudonyms or not numbers or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise GalleryError(f"{path} has an invalid row with key {row.key[:100]!r}. Nothing was imported")
    check_gallery_name(row.gallery)
    return row


def _check_site_key(gallery: Gallery, key: str | None, what: str) -> None:
    held = gallery.setting(SITE_KEY)
    if key is not None and held is not None and key != held:
        raise UsageError(_other_key(what, key, held))


def _other_key(what: str, *keys: str) -> str:
    return (
        f"the pseudonyms of {what} were made with different site keys ({', '.join(keys)}): one patient would have two. Leave them "
        "out (--without-patients), or embed the images again"
    )


def _manifest(reader: Reader, path: Path) -> Manifest:
    no_export = f"{path} is damaged or not an exported index"
    try:
        content = json.loads(reader.manifest)
        if not isinstance(content, dict) or seal(content) != content or content.get("format") != FORMAT:
            raise GalleryError(no_export)
        if content["format_version"] not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise GalleryError(f"{path} has format {content['format_version']}, expected {known}: update lcmem-onnx")
        return Manifest(**{name: content[name] for name in Manifest.__dataclass_fields__ if name in content})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GalleryError(no_export) from error


def _format(path: Path) -> tuple[Writing, Reading]:
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError as error:
        raise UsageError(f"{path} has an unsupported suffix: expected {' or '.join(FORMATS)}") from error
