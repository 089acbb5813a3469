"""The search graph: hnswlib over sqrt(a)·e, a cache that can be made again from the store at any time.

hnswlib loads a file with flipped bytes, or one of another dimension, without a word and answers wrongly; a wrong element
count aborts the process. So a manifest with sha256, dimension, metric, count and the bundle's fingerprint is checked before
hnswlib sees the file, and known vectors are asked for after it was loaded. The manifest is sealed with a digest of its own
fields, since a changed count or newest id would be believed as readily. The graph's file is named by its content and the
manifest is renamed last: at no moment do the two disagree.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import hnswlib
import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryError
from ...model.head import Floats
from ..storage.leftovers import remove_drafts
from .manifest import read_manifest, write_manifest

__all__ = ["MANIFEST", "Graph", "GraphExhaustedError", "graph_there", "load_graph", "remove_graph", "save_graph"]

MANIFEST = "graph.json"
FORMAT_VERSION = 3
FILE_NAME = re.compile(r"graph-[0-9a-f]{16}\.hnsw")
DRAFTS = (".graph-*", f".{MANIFEST}.*")
METRIC = "squared L2 over sqrt(max(-w, 0)) * e"
M, EF_CONSTRUCTION = 16, 200
"""hnswlib's own defaults; 16 links suit 512 dimensions and 200 candidates build a graph of good recall."""
SEED = 100
WORN = 0.2
"""A graph of which more was erased is made again: what is erased still lengthens the ways through it."""
NOISE = 0.5
"""How far the noise reaches that takes the place of erased vectors."""
KNOWN_ANSWERS = 3
FIRST_BEAM = 64


@dataclass(frozen=True)
class GraphManifest:
    """What `graph.json` says of the graph's file."""

    format_version: int
    file: str
    sha256: str
    bytes: int
    metric: str
    dimension: int
    count: int
    erased: int
    newest: int
    fingerprint: str
    content: str


class GraphExhaustedError(GalleryError):
    """The graph reaches fewer vectors than were asked for; the exact search does not depend on it."""


class Graph:
    """Weighted vectors by approximate nearest neighbour. Labels are the store's vector ids.

    Adding while searching is not safe in hnswlib; a `Graph` is extended by its owner only, between searches.
    """

    def __init__(self, dimension: int, threads: int, saved: tuple[Path, int] | None = None) -> None:
        """An empty graph, or one from a checked file with its number of vectors. hnswlib warns when it is asked for both."""
        self.dimension = dimension
        self.newest = 0
        self.content = ""
        self._threads = threads
        self._erased = 0
        self._index = hnswlib.Index(space="l2", dim=dimension)
        if saved is None:
            self._index.init_index(max_elements=0, M=M, ef_construction=EF_CONSTRUCTION, random_seed=SEED)
        else:
            self._index.load_index(str(saved[0]), max_elements=saved[1])
        self._index.set_num_threads(threads)

    def __len__(self) -> int:
        """How many vectors it answers with."""
        return self.held - self._erased

    @property
    def held(self) -> int:
        """How many vectors it has, erased ones with them: their places remain in the file, with other values in them."""
        return int(self._index.get_current_count())

    @property
    def erased(self) -> int:
        return self._erased

    def worn_by(self, count: int) -> bool:
        """Whether with `count` more of them erased it had better be made again."""
        return self._erased + count > WORN * self.held

    def reserve(self, count: int) -> None:
        """Make room for so many more vectors at once: each enlargement copies the graph."""
        self._index.resize_index(self.held + count)

    def extend(self, ids: NDArray[np.int64], weighted: Floats) -> None:
        """Add vectors: ids (n,), above all ids that are in; weighted float32 (n, dimension)."""
        if not len(ids):
            return
        if self._index.get_max_elements() < self.held + len(ids):
            self.reserve(len(ids))
        self._index.add_items(weighted, ids, num_threads=self._threads)
        self.newest = int(ids[-1])

    def erase(self, ids: NDArray[np.int64]) -> None:
        """Take vectors out, those of `ids` that are in: no search answers with them, and none of their values is left.

        hnswlib only marks what is deleted. So each is first moved to a random place, by which hnswlib mends its neighbours'
        links: noise is nobody's, where a neighbour's copy would have to be erased with the neighbour.
        """
        gone = np.intersect1d(ids, np.asarray(self._index.get_ids_list(), np.int64))
        if not len(gone):
            return
        noise = NOISE * np.random.default_rng(self.held).random((len(gone), self.dimension), dtype=np.float32)
        self._index.add_items(noise, gone, num_threads=1)
        for number in gone.tolist():
            self._index.mark_deleted(number)
        self._erased += len(gone)

    def nearest(self, weighted: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
        """Ids and squared distances of about the nearest `count` to one vector (dimension,), nearest first.

        `count` is held to what is in the graph, and the beam is twice as wide.
        """
        count = min(count, len(self))
        if not count:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        self._index.set_ef(max(2 * count, FIRST_BEAM))
        try:
            labels, distances = self._index.knn_query(weighted[None], k=count, num_threads=1)
        except RuntimeError as error:
            raise GraphExhaustedError(f"the search graph does not reach {count} of its {len(self)} vectors") from error
        return labels[0].view(np.int64), distances[0]


def save_graph(graph: Graph, folder: Path, fingerprint: str) -> None:
    """Write the graph and its manifest into `folder`, replacing an older one atomically.

    Raises:
        GalleryError: it cannot be written. The older graph, if any, is still whole.
    """
    remove_drafts(folder, *DRAFTS)
    handle, draft = tempfile.mkstemp(prefix=".graph-", dir=folder)
    os.close(handle)
    try:
        # hnswlib reports no write error, so what it wrote is read back: a short file has another size than it claims.
        graph._index.save_index(draft)
        with open(draft, "rb") as stream:
            os.fsync(stream.fileno())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        size, claimed = os.path.getsize(draft), graph._index.index_file_size()
        if size != claimed:
            raise GalleryError(
                f"cannot write the search graph in {folder}: only {size} of {claimed} bytes were written. Free disk space"
            )
        name = f"graph-{sha256[:16]}.hnsw"
        os.replace(draft, folder / name)
        manifest = GraphManifest(
            FORMAT_VERSION,
            name,
            sha256,
            size,
            METRIC,
            graph.dimension,
            graph.held,
            graph.erased,
            graph.newest,
            fingerprint,
            graph.content,
        )
        write_manifest(folder / MANIFEST, asdict(manifest), indent=2)
        for older in folder.glob("graph-*.hnsw"):
            if older.name != name:
                older.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise GalleryError(f"cannot write the search graph in {folder}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def remove_graph(folder: Path, *, to_be_made_again: bool = False) -> None:
    """Remove the saved graph, if there is one, and what a killed process left of one, so that nothing of it is on the disk.

    `to_be_made_again` leaves the manifest, in which there is nothing of an image: should this process be killed before the
    new graph is saved, the next writer still knows that one is wanted.

    Raises:
        GalleryError: it cannot be removed.
    """
    remove_drafts(folder, *([] if to_be_made_again else [MANIFEST]), "graph-*.hnsw", *DRAFTS)


def graph_there(folder: Path) -> bool:
    """Whether a graph was saved there, whole or not."""
    return (folder / MANIFEST).exists()


def load_graph(folder: Path, fingerprint: str, dimension: int, threads: int) -> Graph:
    """Load a saved graph, after checking that it is the one that was saved and belongs to this bundle.

    Raises:
        GalleryError: missing, damaged, of another bundle, dimension or format. The message says which; the graph can be made
            again from the store.
    """
    manifest = _read_manifest(folder / MANIFEST)
    path = folder / manifest.file
    if manifest.metric != METRIC or manifest.dimension != dimension:
        raise GalleryError("the search graph has another metric or dimension")
    if manifest.fingerprint != fingerprint:
        raise GalleryError("the search graph was made with another bundle")
    try:
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise GalleryError(f"the search graph cannot be read: {error.strerror}") from error
    if actual != manifest.sha256:
        raise GalleryError("the search graph is damaged: its sha256 differs from the manifest's")
    if (
        size != manifest.bytes
        or not 0 < manifest.count * dimension * 4 < size
        or not manifest.count <= manifest.newest < 1 << 63
        or not 0 <= manifest.erased <= manifest.count
    ):
        raise GalleryError("the search graph is damaged: its size or count differs from the manifest's")
    try:
        graph = Graph(dimension, threads, (path, manifest.count))
    except (RuntimeError, MemoryError) as error:
        raise GalleryError(f"the search graph cannot be loaded: {error}") from error
    graph.newest, graph.content, graph._erased = manifest.newest, manifest.content, manifest.erased
    if graph.held != manifest.count or not _answers(graph):
        raise GalleryError("the search graph is damaged: it does not find its own vectors")
    return graph


def _answers(graph: Graph) -> bool:
    """Ask for a few vectors that are in the graph: each must be its own nearest."""
    labels = graph._index.get_ids_list()
    asked = labels[:: max(1, len(labels) // (4 * KNOWN_ANSWERS))][: 4 * KNOWN_ANSWERS]
    erased = 0
    for label in asked if graph.erased else asked[::4]:
        try:
            vector = np.asarray(graph._index.get_items([label], return_type="numpy")[0], dtype=np.float32)
        except RuntimeError:  # "Label not found", though it is in the list: it was erased
            erased += 1
            continue
        ids, distances = graph.nearest(vector, 1)
        if not len(ids) or distances[0] > 1e-6:
            return False
    return erased <= graph.erased


def _read_manifest(path: Path) -> GraphManifest:
    """Read and check a manifest: whatever is off with it, the graph is made again.

    Raises:
        GalleryError: it is missing, damaged or of another format.
    """
    manifest = read_manifest(path, GraphManifest, FORMAT_VERSION, "the search graph", GalleryError)
    if manifest is None:
        raise GalleryError("the index has no search graph yet")
    if not FILE_NAME.fullmatch(manifest.file):
        raise GalleryError(f"{path} refers to a file that is not a search graph of this index")
    return manifest
