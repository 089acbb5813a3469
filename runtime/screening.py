"""Images in, verdicts out: the one pipeline that the command line, gateways and scripts share.

A thread pool reads, decodes and resizes ahead while the encoder works; results come in the order of the images. Each
image's failure is its own: it becomes a result with the verdict `error`, and the next image follows. What cannot be
judged is never `clear`: neither what does not decode, nor a blank image, which any other blank one would match.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .calibration.threshold import Decision, decide_pair_threshold, decide_threshold
from .errors import EncodingError, GalleryError, ImageError, KeyConflictError, LcmemError, Reason, UsageError
from .gallery import DEFAULT_GALLERY, Added, Entry, Gallery, Search, check_gallery_name
from .images.content_flags import ContentFlag
from .images.dicom.identifiers import NOBODY, Identifiers
from .images.discovery import Found, Skipped, Supplied, Unfound, image_name, walk_or_supplied
from .images.formats import DEFAULT_LIMITS, Limits, read_file
from .images.image import ImageFile, open_image, views_of
from .images.preprocess import check_rgb
from .model.bundle import Bundle, open_bundle
from .model.encoder import Encoder
from .model.head import Floats
from .model.session import AUTO
from .model.variant import AUTO_VARIANT
from .results import SCHEMA_VERSION, Comparison, Embedded, EmbeddedFile, Indexed, Result, ThresholdSource, Verdict, judged
from .system.cpu import cpu_limit

if TYPE_CHECKING:
    from .images.sandbox import Nursery, SandboxedImageFile

__all__ = ["SCHEMA_VERSION", "Comparison", "Embedded", "Indexed", "Result", "Screener", "Source", "Verdict"]

Source = str | os.PathLike[str] | bytes | NDArray[np.uint8]
"""An image as scripts have it: a path, a file's bytes, or an RGB array, uint8 (height, width, 3)."""
Where = str | os.PathLike[str] | Found | Unfound | Skipped | Supplied
"""A file or folder to be searched, or what a search found (a program that shows progress has walked its folders already), or an
image that is supplied under a name of its own."""
FRAMES_AHEAD = 16
"""Frames that a worker decodes before its turn comes. The rest of a long image is decoded when it is that image's turn,
so that one file of 4,000 frames does not fill the memory."""


@dataclass(frozen=True, eq=False)
class _Frame:
    """One frame on its way through the pipeline, or the news that an image has none to give.

    `path` is what results call it, `key` what a gallery does. `value` is in turn the views (see `ImageFile.views`), uint8 (views,
    size, size, 3), and their embeddings, float32 (views, features); an error in place of either; or None for a file that needs
    no embedding. `number` is None where the image as a whole is meant, and `last` marks an image's end.
    """

    path: str
    key: str
    content: bytes | None
    frames: int
    number: int | None
    last: bool
    value: NDArray[Any] | LcmemError | None
    identifiers: Identifiers = NOBODY
    notes: tuple[ContentFlag, ...] = ()


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a worker made of a file: its hash, its first frames, and the image itself where there are more to come."""

    content: bytes | None
    frames: int = 0
    ahead: tuple[NDArray[np.uint8] | ImageError, ...] = ()
    image: ImageFile | SandboxedImageFile | None = None
    error: ImageError | None = None
    identifiers: Identifiers = NOBODY
    notes: tuple[ContentFlag, ...] = ()


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
        self._nursery = _nursery(limits) if isolate else None
        self._workers = threads or cpu_limit()
        self._batch = self.encoder.batch

    def close(self) -> None:
        """End the decoders' processes, where there are any. They are started again when they are needed."""
        if self._nursery:
            self._nursery.close()

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
        parts = [np.stack(pixels[at : at + self._batch]) for at in range(0, len(pixels), self._batch)]
        return np.concatenate([self.encoder.embed_resized(part) for part in parts])

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
        self, ones: Sequence[Floats] | Floats, others: Sequence[Floats] | Floats, threshold: float | Decision | None = None
    ) -> Comparison:
        """Score two images by their embeddings, as `embed` or `embed_renderings` gives them."""
        decision = threshold if isinstance(threshold, Decision) else decide_pair_threshold(self.bundle, threshold)
        first, second = (np.concatenate([np.atleast_2d(frame) for frame in frames]) for frames in (ones, others))
        numbers = [[at for at, frame in enumerate(frames) for _ in np.atleast_2d(frame)] for frames in (ones, others)]
        logits = np.stack([self.bundle.head.logits(one, second) for one in first])
        a, b = (int(at) for at in np.unravel_index(int(logits.argmax()), logits.shape))
        score = self.bundle.head.score(first[a], second[b])
        verdict = Verdict.MATCH if score >= decision.threshold else Verdict.CLEAR
        frames = (numbers[0][a], numbers[1][b])
        return Comparison(score, float(logits[a, b]), decision.threshold, verdict, frames, decision.source.value)

    def _views(self, image: Source) -> Iterator[tuple[NDArray[np.uint8], ...]]:
        """Of each frame."""
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

    def open(self, data: bytes, name: str = "") -> ImageFile | SandboxedImageFile:
        """Open a file's bytes as this screener does, in a process of its own where it isolates; `close` what is returned."""
        return self._nursery.open(data, name) if self._nursery else open_image(data, self.limits, name)

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
        paths: Iterable[Where],
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
        paths: Iterable[Where],
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
        for frame in self._embedded(self._frames_ahead(paths, on_skip)):
            result = Result(
                frame.path,
                frame.number,
                Verdict.ERROR,
                Reason.BELOW_THRESHOLD,
                decision.threshold,
                sha256=_hex(frame.content),
                threshold_source=decision.source,
                notes=frame.notes,
            )
            if isinstance(frame.value, np.ndarray):
                (found,) = gallery.search(frame.value[None], decision.threshold, top=top, how=search, galleries=galleries)
                if gallery.replaced != replaced:  # by an index that may have a threshold of its own
                    replaced = gallery.replaced
                    if decision.source is not ThresholdSource.GIVEN:
                        decision = decide_threshold(gallery, None, decision.fpir, galleries)
                    result = replace(result, threshold=decision.threshold, threshold_source=decision.source)
                    (found,) = gallery.search(frame.value[None], decision.threshold, top=top, how=search, galleries=galleries)
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
            else:
                reason, detail = _explain(frame.value)
                yield replace(result, reason=reason, detail=detail)

    def embeddings(self, paths: Iterable[Where], on_skip: Callable[[Path], None] | None = None) -> Iterator[Embedded]:
        """Embed images, and do nothing else with them.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            on_skip: is told of files in folders that are no images.

        Yields:
            An `Embedded` a file, in order.
        """
        for parts in self._files(paths, on_skip):
            first, found = parts[0], list(_embeddings(parts).values())
            stacked = np.concatenate(found) if found else np.empty((0, self.bundle.features), np.float32)
            yield Embedded(first.path, first.content, stacked, _errors(parts), first.identifiers)

    def embed_files(self, paths: Iterable[Where], known: Callable[[bytes, str], bool]) -> Iterator[EmbeddedFile]:
        """Embed files, each frame by all its renderings.

        Args:
            paths: files and folders (recursive), or what `walk` found in them.
            known: asked, from several threads, whether a file of this sha256 and absolute path may be left out. Then it has
                neither frames nor errors.

        Yields:
            An `EmbeddedFile` a file, in order.
        """
        for parts in self._files(paths, None, known):
            yield EmbeddedFile(parts[0].path, parts[0].content, parts[0].frames, _embeddings(parts), _errors(parts))

    # -- the pipeline ----------------------------------------------------------------------------------------------

    def _check(self, gallery: Gallery) -> None:
        if gallery.bundle.fingerprint != self.bundle.fingerprint:
            raise UsageError("the gallery was opened with another bundle than this screener's")

    def _files(
        self,
        paths: Iterable[Where],
        on_skip: Callable[[Path], None] | None,
        known: Callable[[bytes, str], bool] | None = None,
    ) -> Iterator[list[_Frame]]:
        """The embedded frames of one file after another."""
        parts: list[_Frame] = []
        for frame in self._embedded(self._frames_ahead(paths, on_skip, known)):
            parts.append(frame)
            if frame.last:
                yield parts
                parts = []

    def _frames_ahead(
        self,
        paths: Iterable[Where],
        on_skip: Callable[[Path], None] | None,
        known: Callable[[bytes, str], bool] | None = None,
    ) -> Iterator[_Frame]:
        """Frames of all images in order, decoded by the workers a few images ahead."""
        depth = 2 * self._workers + self._batch
        pending: deque[tuple[str, str, Future[_Prepared] | ImageError]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="lcmem-decode")
        try:
            for found in walk_or_supplied(paths):
                if isinstance(found, Skipped):
                    if on_skip:
                        on_skip(found.path)
                    continue
                if isinstance(found, Supplied):
                    name = key = found.key
                else:
                    name, key = image_name(found.path), _key(found.path)
                outcome = found.error if isinstance(found, Unfound) else pool.submit(self._prepare, found, key, known)
                pending.append((name, key, outcome))
                if len(pending) >= depth:
                    yield from self._frames_of(*pending.popleft())
            while pending:
                yield from self._frames_of(*pending.popleft())
        finally:
            if isinstance(paths, Generator):
                paths.close()  # first, so that what supplies images can stop the workers that wait for it
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, found: Found | Supplied, key: str, known: Callable[[bytes, str], bool] | None) -> _Prepared:
        """A worker's part: read, hash, decode, resize. An image's own errors are a result, not an exception."""
        content = None
        try:
            data = found.read() if isinstance(found, Supplied) else read_file(found.path, self.limits)
            content = hashlib.sha256(data).digest()
            if known and known(content, key):
                return _Prepared(content)
            image = self.open(data, "" if isinstance(found, Supplied) else found.path.name)
            ahead = tuple(self._one_frame(image, number) for number in range(min(image.frames, FRAMES_AHEAD)))
        except ImageError as error:
            return _Prepared(content, error=error)
        except MemoryError:
            return _Prepared(content, error=ImageError(Reason.OUT_OF_MEMORY, "there was not enough memory to read it"))
        more = image if image.frames > len(ahead) else None
        if more is None:
            image.close()
        return _Prepared(content, image.frames, ahead, more, None, image.identifiers, image.notes)

    def _one_frame(self, image: ImageFile | SandboxedImageFile, number: int) -> NDArray[np.uint8] | ImageError:
        try:
            return np.stack(image.views(number, self.bundle.image_size))
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(Reason.OUT_OF_MEMORY, "there was not enough memory to decode it")

    def _frames_of(self, path: str, key: str, outcome: Future[_Prepared] | ImageError) -> Iterator[_Frame]:
        prepared = _Prepared(None, error=outcome) if isinstance(outcome, ImageError) else outcome.result()
        if prepared.error or not prepared.frames:
            yield _Frame(path, key, prepared.content, prepared.frames, None, True, prepared.error)
            return
        for number in range(prepared.frames):
            value = (
                prepared.ahead[number]
                if prepared.image is None or number < len(prepared.ahead)
                else self._one_frame(prepared.image, number)
            )
            last = number == prepared.frames - 1
            notes = prepared.notes if prepared.image is None else prepared.image.notes  # some show in decoding only
            if last and prepared.image is not None:
                prepared.image.close()
            yield _Frame(path, key, prepared.content, prepared.frames, number, last, value, prepared.identifiers, notes)

    def _embedded(self, frames: Iterable[_Frame]) -> Iterator[_Frame]:
        """The same frames in the same order, pixels replaced by embeddings, in batches across images."""
        waiting: list[_Frame] = []
        images = 0
        for frame in frames:
            waiting.append(frame)
            images += len(frame.value) if isinstance(frame.value, np.ndarray) else 0
            if images >= self._batch:
                yield from self._embed_all(waiting)
                waiting, images = [], 0
        yield from self._embed_all(waiting)

    def _embed_all(self, frames: Sequence[_Frame]) -> Iterator[_Frame]:
        views = [view for frame in frames if isinstance(frame.value, np.ndarray) for view in frame.value]
        embeddings = iter(self._embed_safely(views))
        for frame in frames:
            if not isinstance(frame.value, np.ndarray):
                yield frame
                continue
            whole: list[Floats] = []
            failed: EncodingError | None = None
            for embedding in islice(embeddings, len(frame.value)):
                if isinstance(embedding, EncodingError):
                    failed = embedding
                else:
                    whole.append(embedding)
            yield replace(frame, value=failed or np.stack(whole))

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


def _nursery(limits: Limits) -> Nursery:
    from .images.sandbox import Nursery

    return Nursery(limits)


def _empty(gallery: Gallery) -> GalleryError:
    return GalleryError(f"{gallery.folder} holds no images, so nothing can be found in it: add some first")


def _key(path: Path) -> str:
    """An image's key: its absolute path, so that it means the same wherever the command is run, as valid text."""
    return str(image_name(Path(os.path.abspath(path))))


def _add(parts: Sequence[_Frame], gallery: Gallery, name: str) -> Indexed:
    """Add one image's frames to a gallery, and say what became of it."""
    first, errors, embeddings = parts[0], _errors(parts), _embeddings(parts)
    if first.content is None or (errors and not embeddings):
        return Indexed(first.path, None, 0, errors)
    try:
        # Asked again: an equal file may have been added since the worker looked.
        added = gallery.status(first.key, first.content, name)
        if added is Added.COPY:
            gallery.add_copy(first.key, first.content, name)
        elif added is Added.NEW:
            entry = Entry(first.key, first.content, first.frames, embeddings, name, *_pseudonyms(first.identifiers, gallery))
            gallery.add(entry)
    except KeyConflictError as error:
        return Indexed(first.path, None, 0, ((None, Reason.KEY_CONFLICT, str(error)),))
    return Indexed(first.path, added, len(embeddings), errors)


def _embeddings(parts: Sequence[_Frame]) -> dict[int, Floats]:
    return {part.number: part.value for part in parts if isinstance(part.value, np.ndarray) and part.number is not None}


def _errors(parts: Sequence[_Frame]) -> tuple[tuple[int | None, Reason, str], ...]:
    return tuple((part.number, *_explain(part.value)) for part in parts if isinstance(part.value, LcmemError))


def _pseudonyms(whose: Identifiers, gallery: Gallery) -> tuple[str | None, str | None]:
    """A patient's and a study's pseudonyms; the site key is not asked for where there is nothing to hide."""
    patient = gallery.site_key().patient(whose.patient_id, whose.issuer) if whose.patient_id else None
    return patient, gallery.site_key().study(whose.study_uid) if whose.study_uid else None


def _explain(error: object) -> tuple[Reason, str]:
    reason = error.reason if isinstance(error, ImageError) else Reason.NOT_FINITE
    return reason, str(error)


def _hex(content: bytes | None) -> str | None:
    return content.hex() if content else None
