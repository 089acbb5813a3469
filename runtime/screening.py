"""Images in, verdicts out: the one pipeline that the command line, gateways and scripts share.

Threads read, decode and resize ahead (see `decode_pool`) while the encoder works; results come in the order of the images.
Each image's failure is its own: it becomes a result with the verdict `error`, and the next image follows. What cannot be judged
is never `clear`: neither what does not decode, nor a blank image, which any other blank image would match.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .calibration.threshold import Decision, decide_pair_threshold, decide_threshold
from .decode_pool import DecodedFrame, DecodePool, DecodeResult, FailedFrame, Frame, KnownFile, PathOrFound
from .errors import EncodingError, GalleryError, ImageError, KeyConflictError, LcmemError, Reason, UsageError
from .gallery import DEFAULT_GALLERY, Added, Entry, Gallery, Search, check_gallery_name
from .images.dicom.identifiers import Identifiers
from .images.formats import DEFAULT_LIMITS, Limits, read_file
from .images.image import views_of
from .images.preprocess import check_rgb
from .model.bundle import Bundle, open_bundle
from .model.encoder import Encoder
from .model.head import Floats
from .model.session import AUTO
from .model.variant import AUTO_VARIANT
from .results import SCHEMA_VERSION, Comparison, Embedded, EmbeddedFile, Indexed, Result, ThresholdSource, Verdict, judged
from .system.cpu import cpu_limit

if TYPE_CHECKING:
    from .decode_pool import OpenImage

__all__ = [
    "SCHEMA_VERSION",
    "Comparison",
    "EmbedResult",
    "Embedded",
    "EmbeddedFrame",
    "Indexed",
    "Result",
    "Screener",
    "Source",
    "Verdict",
]

Source = str | os.PathLike[str] | bytes | NDArray[np.uint8]
"""An image as scripts have it: a path, a file's bytes, or an RGB array, uint8 (height, width, 3)."""


@dataclass(frozen=True, eq=False)
class EmbeddedFrame(Frame):
    """A frame's embeddings, one for each of its views: float32 (views, features)."""

    number: int
    embeddings: Floats


EmbedResult = EmbeddedFrame | FailedFrame | KnownFile


class Screener:
    """A bundle, ready to embed, compare, index and screen images.

    Args:
        bundle: an opened bundle, its folder, or None for the model of the package.
        variant: "auto", "fp32", "fp16" or "int8"; what is not "auto" and is not in the bundle is an error.
        provider: "auto", "cpu", "cuda", ...; what is not "auto" and cannot be had is an error.
        threads: for inference and for decoding; None takes what the container allows.
        session: an onnxruntime session of the caller's own, on the bundle's encoder.
        limits: bounds on what is decoded.
        isolate: decode each image in a process of its own, under limits on time and memory (see `images.sandbox`): for files that
            come from outside. It costs some 20 ms an image. `close` then ends these processes.

    Raises:
        BundleError, ProviderError, UsageError: see `open_bundle` and `Encoder`; `isolate` works on Linux only.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str] | None = None,
        *,
        variant: str = AUTO_VARIANT,
        provider: str = AUTO,
        threads: int | None = None,
        session: ort.InferenceSession | None = None,
        limits: Limits = DEFAULT_LIMITS,
        isolate: bool = False,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.encoder = Encoder(self.bundle, variant=variant, provider=provider, threads=threads, session=session)
        self.limits = limits
        self._batch = self.encoder.batch
        workers = threads or cpu_limit()
        self.decode_pool = DecodePool(
            self.bundle.image_size, workers=workers, depth=2 * workers + self._batch, limits=limits, isolate=isolate
        )

    def close(self) -> None:
        """End the decoders' processes, where there are any. They are started again when they are needed."""
        self.decode_pool.close()

    # -- one image or two ----------------------------------------------------------------------------------------

    def embed(self, image: Source) -> Floats:
        """Embed one image.

        Args:
            image: a path, a file's bytes, or an RGB array, uint8 (height, width, 3).

        Returns:
            float32 (frames, features), in [0, 1]; one frame for an ordinary image. Each frame as a viewer shows it.

        Raises:
            ImageError: it cannot be read, a frame cannot be decoded, or a frame is blank.
            EncodingError: the network's output is not finite.
        """
        return self._embed_pixels([views[0] for views in self._views(image)])

    def embed_renderings(self, image: Source) -> list[Floats]:
        """As `embed`, by all that the frames may look like (see `ImageFile.views`): float32 (renderings, features) for each."""
        frames = list(self._views(image))
        ends = np.cumsum([len(views) for views in frames])
        return np.split(self._embed_pixels([view for views in frames for view in views]), ends[:-1])

    def _embed_pixels(self, pixels: Sequence[NDArray[np.uint8]]) -> Floats:
        batches = [np.stack(pixels[start : start + self._batch]) for start in range(0, len(pixels), self._batch)]
        return np.concatenate([self.encoder.embed_resized(batch) for batch in batches])

    def compare(self, first: Source, second: Source, threshold: float | None = None, fpir: float | None = None) -> Comparison:
        """Score two images: do they show the same?

        Args:
            first, second: as for `embed`.
            threshold: score in (0, 1); None takes what the bundle's strangers give for a gallery of one, else the bundle's.
            fpir: wanted false-positive identification rate, for a bundle with a strangers' tail; None takes 5 %.

        Raises:
            UsageError: the threshold or the rate is out of range, or a rate is asked of a bundle without a tail.
            ImageError, EncodingError: as for `embed`.
        """
        decision = decide_pair_threshold(self.bundle, threshold, fpir)  # before the work, so that a wrong one is said at once
        return self.compare_embeddings(self.embed_renderings(first), self.embed_renderings(second), decision)

    def compare_embeddings(
        self, first: Sequence[Floats] | Floats, second: Sequence[Floats] | Floats, threshold: float | Decision | None = None
    ) -> Comparison:
        """Score two images by their embeddings, as `embed` or `embed_renderings` gives them."""
        decision = threshold if isinstance(threshold, Decision) else decide_pair_threshold(self.bundle, threshold)
        (rows, row_frames), (columns, column_frames) = _flatten(first), _flatten(second)
        logits = np.stack([self.bundle.head.logits(row, columns) for row in rows])
        row, column = (int(index) for index in np.unravel_index(int(logits.argmax()), logits.shape))
        score = self.bundle.head.score(rows[row], columns[column])
        verdict = Verdict.MATCH if score >= decision.threshold else Verdict.CLEAR
        frames = (row_frames[row], column_frames[column])
        return Comparison(score, float(logits[row, column]), decision.threshold, verdict, frames, decision.source.value)

    def _views(self, image: Source) -> Iterator[tuple[NDArray[np.uint8], ...]]:
        """Yield the resized renderings of each frame."""
        if isinstance(image, np.ndarray):
            check_rgb(image)
            yield views_of([image], self.bundle.image_size)
            return
        data = image if isinstance(image, bytes) else read_file(Path(image), self.limits)
        opened = self.open(data, "" if isinstance(image, bytes) else Path(image).name)
        try:
            for number in range(opened.frames):
                yield opened.views(number, self.bundle.image_size)
        finally:
            opened.close()

    def open(self, data: bytes, name: str = "") -> OpenImage:
        """Open a file's bytes as this screener does, in a process of its own where it isolates; `close` what is returned."""
        return self.decode_pool.open(data, name)

    def self_test(self) -> float:
        """Embed a drawn image and score it with itself: close to 1 in a model that works.

        Raises:
            EncodingError: the network's output is not finite.
        """
        size = self.bundle.image_size
        ramp = np.arange(size, dtype=np.uint8)
        drawn = np.stack([np.add.outer(ramp, ramp), np.subtract.outer(ramp, ramp), np.bitwise_xor.outer(ramp, ramp)], axis=2)
        embedding = self.embed(drawn)[0]
        return self.bundle.head.score(embedding, embedding)

    # -- many ------------------------------------------------------------------------------------------------------

    def index(
        self,
        paths: Iterable[PathOrFound],
        gallery: Gallery,
        on_skip: Callable[[Path], None] | None = None,
        *,
        name: str = DEFAULT_GALLERY,
    ) -> Iterator[Indexed]:
        """Add images to a gallery. Each is on disk when its `Indexed` is yielded, so stopping at any moment loses nothing.

        A file that is in the gallery already, by its content, is not embedded again. Of a DICOM object, pseudonyms of its patient
        and study are kept beside it (see `SiteKey`).

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            gallery: opened for writing, of the same bundle.
            on_skip: is told of files in folders that are no images.
            name: the group within the index that they are added to.

        Yields:
            An `Indexed` a file, in order.

        Raises:
            GalleryError: the gallery cannot be written.
            UsageError: a name that is none, or the site key cannot be opened or is another than the index's.
        """
        self._check(gallery)
        check_gallery_name(name)

        def known(content: bytes, key: str) -> bool:
            return gallery.status(key, content, name) is not Added.NEW

        for parts in self._files(paths, on_skip, known):
            yield _add(parts, gallery, name)

    def screen(
        self,
        paths: Iterable[PathOrFound],
        gallery: Gallery,
        *,
        threshold: float | Decision | None = None,
        fpir: float | None = None,
        top: int = 5,
        search: Search | str = Search.AUTO,
        galleries: Collection[str] | None = None,
        on_skip: Callable[[Path], None] | None = None,
    ) -> Iterator[Result]:
        """Screen images against a gallery.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            gallery: of the same bundle.
            threshold: score in (0, 1), or what `decide_threshold` said; None asks it: the index's own where it was calibrated,
                else what the bundle's strangers give for the gallery's size, else the bundle's.
            fpir: wanted false-positive identification rate, for a bundle with a strangers' tail; None takes 5 %.
            top: how many matches to list a frame.
            search: see `Search`.
            galleries: the groups of the index to screen against; None screens against all.
            on_skip: is told of files in folders that are no images.

        Yields:
            A `Result` a frame, in order; one for the whole image when it cannot be opened.

        Raises:
            UsageError: a threshold or `top` out of range, or a gallery that is not in the index.
            GalleryError: the gallery is damaged, or empty, or becomes so: then everything would be clear.
        """
        self._check(gallery)
        decision = threshold if isinstance(threshold, Decision) else decide_threshold(gallery, threshold, fpir, galleries)
        if not len(gallery):
            raise _empty(gallery)
        replaced = gallery.replaced
        if top < 1:
            raise UsageError(f"{top} matches cannot be listed; ask for 1 or more")
        for frame in self.embed_frames(self.decode_pool.frames(paths, on_skip)):
            result = Result(
                frame.file.path,
                frame.number,
                Verdict.ERROR,
                Reason.BELOW_THRESHOLD,
                decision.threshold,
                sha256=frame.file.content.hex() if frame.file.content else None,
                threshold_source=decision.source,
                notes=frame.notes,
            )
            if isinstance(frame, KnownFile):
                raise AssertionError("a scan leaves no file out")
            if isinstance(frame, FailedFrame):
                reason, detail = _explain(frame.error)
                yield replace(result, reason=reason, detail=detail)
                continue
            query = frame.embeddings[None]
            (found,) = gallery.search(query, decision.threshold, top=top, how=search, galleries=galleries)
            if gallery.replaced != replaced:  # by an index that may have a threshold of its own
                replaced = gallery.replaced
                if decision.source is not ThresholdSource.GIVEN:
                    decision = decide_threshold(gallery, None, decision.fpir, galleries)
                result = replace(result, threshold=decision.threshold, threshold_source=decision.source)
                (found,) = gallery.search(query, decision.threshold, top=top, how=search, galleries=galleries)
            if found.nearest is None:  # emptied meanwhile, or replaced by an index that is just being built
                raise _empty(gallery)
            yield replace(
                result,
                **judged(found, frame.notes),
                matches=found.matches,
                total=found.total,
                nearest=found.nearest,
                identities=found.identities,
                complete=found.complete,
            )

    def embeddings(self, paths: Iterable[PathOrFound], on_skip: Callable[[Path], None] | None = None) -> Iterator[Embedded]:
        """Embed images, and do nothing else with them.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            on_skip: is told of files in folders that are no images.

        Yields:
            An `Embedded` a file, in order.
        """
        for parts in self._files(paths, on_skip):
            file, vectors = parts[0].file, list(_embeddings(parts).values())
            stacked = np.concatenate(vectors) if vectors else np.empty((0, self.bundle.features), np.float32)
            yield Embedded(file.path, file.content, stacked, _errors(parts), file.identifiers)

    def embed_files(self, paths: Iterable[PathOrFound], known: Callable[[bytes, str], bool]) -> Iterator[EmbeddedFile]:
        """Embed files, each frame by all its renderings.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            known: asked, from several threads, whether a file of this sha256 and absolute path may be left out. Then it has
                neither frames nor errors.

        Yields:
            An `EmbeddedFile` a file, in order.
        """
        for parts in self._files(paths, None, known):
            file = parts[0].file
            yield EmbeddedFile(file.path, file.content, file.frames, _embeddings(parts), _errors(parts))

    # -- the pipeline ----------------------------------------------------------------------------------------------

    def _check(self, gallery: Gallery) -> None:
        if gallery.bundle.fingerprint != self.bundle.fingerprint:
            raise UsageError("the gallery was opened with another bundle than this screener's")

    def _files(
        self,
        paths: Iterable[PathOrFound],
        on_skip: Callable[[Path], None] | None,
        known: Callable[[bytes, str], bool] | None = None,
    ) -> Iterator[list[EmbedResult]]:
        """The embedded frames of one file after another."""
        parts: list[EmbedResult] = []
        for frame in self.embed_frames(self.decode_pool.frames(paths, on_skip, known)):
            parts.append(frame)
            if frame.last:
                yield parts
                parts = []

    def embed_frames(self, frames: Iterable[DecodeResult]) -> Iterator[EmbedResult]:
        """Embed the frames of a `DecodePool`, in batches across images.

        Yields:
            The same frames in the same order. A frame whose embedding fails becomes a `FailedFrame`.
        """
        waiting: list[DecodeResult] = []
        images = 0
        for frame in frames:
            waiting.append(frame)
            images += len(frame.views) if isinstance(frame, DecodedFrame) else 0
            if images >= self._batch:
                yield from self._embed_all(waiting)
                waiting, images = [], 0
        yield from self._embed_all(waiting)

    def _embed_all(self, frames: Sequence[DecodeResult]) -> Iterator[EmbedResult]:
        embeddings = iter(self._embed_safely([view for frame in frames if isinstance(frame, DecodedFrame) for view in frame.views]))
        for frame in frames:
            if not isinstance(frame, DecodedFrame):
                yield frame
                continue
            vectors: list[Floats] = []
            failed: EncodingError | None = None
            for embedding in islice(embeddings, len(frame.views)):
                if isinstance(embedding, EncodingError):
                    failed = embedding
                else:
                    vectors.append(embedding)
            if failed:
                yield FailedFrame(frame.file, frame.number, frame.notes, failed)
            else:
                yield EmbeddedFrame(frame.file, frame.number, frame.notes, np.stack(vectors))

    def _embed_safely(self, pixels: Sequence[NDArray[Any]]) -> Sequence[Floats | EncodingError]:
        """Embed a batch; where that fails, each image alone, so that one does not take the others along."""
        if not pixels:
            return []
        try:
            return list(self.encoder.embed_resized(np.stack(pixels)))
        except EncodingError as error:
            if len(pixels) == 1:
                return [error]
            return [self._embed_safely([image])[0] for image in pixels]


def _empty(gallery: Gallery) -> GalleryError:
    return GalleryError(f"{gallery.folder} holds no images, so nothing can be found in it: add some first")


def _flatten(frames: Sequence[Floats] | Floats) -> tuple[Floats, list[int]]:
    """Stack the renderings of all frames, and number the frame of each."""
    stacks = [np.atleast_2d(frame) for frame in frames]
    return np.concatenate(stacks), [number for number, stack in enumerate(stacks) for _ in stack]


def _add(parts: Sequence[Frame], gallery: Gallery, name: str) -> Indexed:
    """Add the frames of one image to a gallery, and return what became of it."""
    file, errors, embeddings = parts[0].file, _errors(parts), _embeddings(parts)
    if file.content is None or (errors and not embeddings):
        return Indexed(file.path, None, 0, errors)
    try:
        # Asked again: an equal file may have been added since the worker looked.
        added = gallery.status(file.key, file.content, name)
        if added is Added.COPY:
            gallery.add_copy(file.key, file.content, name)
        elif added is Added.NEW:
            gallery.add(Entry(file.key, file.content, file.frames, embeddings, name, *_pseudonyms(file.identifiers, gallery)))
    except KeyConflictError as error:
        return Indexed(file.path, None, 0, ((None, Reason.KEY_CONFLICT, str(error)),))
    return Indexed(file.path, added, len(embeddings), errors)


def _embeddings(parts: Iterable[Frame]) -> dict[int, Floats]:
    return {part.number: part.embeddings for part in parts if isinstance(part, EmbeddedFrame)}


def _errors(parts: Iterable[Frame]) -> tuple[tuple[int | None, Reason, str], ...]:
    return tuple((part.number, *_explain(part.error)) for part in parts if isinstance(part, FailedFrame))


def _pseudonyms(identifiers: Identifiers, gallery: Gallery) -> tuple[str | None, str | None]:
    """Return the pseudonyms of a patient and a study. Without either, the site key is not opened."""
    patient = gallery.site_key().patient(identifiers.patient_id, identifiers.issuer) if identifiers.patient_id else None
    return patient, gallery.site_key().study(identifiers.study_uid) if identifiers.study_uid else None


def _explain(error: LcmemError) -> tuple[Reason, str]:
    reason = error.reason if isinstance(error, ImageError) else Reason.NOT_FINITE
    return reason, str(error)
