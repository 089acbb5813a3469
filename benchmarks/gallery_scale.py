"""The gallery at scale, beside raw hnswlib in the same run: recall of matches, search, build, memory, exact search, opening.

python benchmarks/gallery_scale.py FOLDER [--vectors 100000] [--parts exact,graph,opening] [--statistics FILE.npz]

The vectors are drawn, 512 features each, like those of the bundled model: 200 phantoms (models/synthetic, identities that no
training saw) are embedded at three visits each; in the space before the sigmoid, the means of the identities and the spread of
the visits around them give two normal distributions (covariances of rank 199 and 400). A patient is a draw of the first, with 1
to 9 images that are draws of the second around it. Queries are further images of patients in the gallery (half) and of
others. So there are clusters, near misses, and matches that differ from their images as those of the model do.

Raw hnswlib gets the same vectors, already weighted, and the same M, ef_construction and ef; its answers are labels and squared
distances, ours the model's scores and the images' names.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import hnswlib
import numpy as np
from lcmem_onnx.models.synthetic.phantoms import phantom
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.gallery.search.hnsw import EF_CONSTRUCTION, FIRST_BEAM, SEED, M
from lcmem_onnx.runtime.gallery.search.l1_codes import Coder
from lcmem_onnx.runtime.gallery.search.searcher import FIRST_CANDIDATES
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.screening import Screener
from lcmem_onnx.runtime.system.cpu import cpu_limit, cpu_name

IDENTITIES, VISITS, FIRST_IDENTITY = 200, 3, 20_000
ADDED_AT_ONCE = 10_000
QUERIES = 200
BEAM = max(2 * FIRST_CANDIDATES, FIRST_BEAM)
IMAGE = Path(__file__).parent.parent / "examples" / "pictures" / "queries"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the index and the vectors; kept, so that a second run goes on from there")
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--parts", default="exact,graph,opening", help="which to run; bounds too")
    parser.add_argument("--statistics", type=Path, help="embeddings (e) and identities (i) instead of phantoms embedded now")
    parser.add_argument("--one-graph", action="store_true", help="raw hnswlib searches the graph that ours is, and builds none")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if "bounds" in options.parts.split(","):
        bounds(options.statistics)
        if options.parts == "bounds":
            return
    print(f"{options.vectors} vectors; {cpu_name()}, {cpu_limit()} threads, {time.strftime('%Y-%m-%d')}", flush=True)
    vectors, queries = drawn(options.folder, options.vectors, options.statistics)
    folder = options.folder / f"index-{options.vectors}"
    if not (folder / "flat.json").exists():
        build(folder, vectors)
    if options.one_graph and "graph" in options.parts.split(","):
        borrow_graph(folder, len(vectors))
    for part in options.parts.split(","):
        if part != "bounds":
            {"exact": exact, "graph": graph, "opening": opening}[part](folder, vectors, queries)


def drawn(folder: Path, count: int, statistics_file: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (count, 512) and queries (QUERIES, 512), float32, memory-mapped from files that are made once."""
    path = folder / f"vectors-{count}.npy"
    if not path.exists():
        embeddings, identities = _embedded(statistics_file)
        logits = np.log(np.clip(embeddings, 1e-5, 1 - 1e-5) / (1 - np.clip(embeddings, 1e-5, 1 - 1e-5))).astype(np.float64)
        means = np.stack([logits[identities == one].mean(axis=0) for one in np.unique(identities)])
        spread = np.concatenate(
            [logits[identities == one] - logits[identities == one].mean(axis=0) for one in np.unique(identities)]
        )
        between = ((means - means.mean(axis=0)) / np.sqrt(len(means) - 1)).astype(np.float32)
        within = (spread / np.sqrt(len(spread) - len(means))).astype(np.float32)
        random = np.random.default_rng(1)
        made = np.lib.format.open_memmap(path, "w+", np.float32, (count + QUERIES, embeddings.shape[1]))
        sizes = random.integers(1, 10, count)
        whose = np.repeat(np.arange(count), sizes)[:count]
        patients = len(np.unique(whose))
        # Queries: images of patients of the gallery, and of patients beyond.
        whose = np.concatenate([whose, random.integers(0, patients, QUERIES // 2), patients + np.arange(QUERIES - QUERIES // 2)])
        for at in range(0, len(whose), 20_000):
            part = whose[at : at + 20_000]
            known, place = np.unique(part, return_inverse=True)
            centres = np.stack([np.random.default_rng([7, int(one)]).standard_normal(len(between), np.float32) for one in known])
            noise = random.standard_normal((len(part), len(within)), np.float32)
            logit = means.mean(axis=0).astype(np.float32) + (centres @ between)[place] + noise @ within
            made[at : at + len(part)] = 1 / (1 + np.exp(-logit))
        made.flush()
    made = np.load(path, mmap_mode="r")
    return made[:count], np.array(made[count:])


def _embedded(file: Path | None) -> tuple[np.ndarray, np.ndarray]:
    if file:
        with np.load(file) as kept:
            return kept["e"], kept["i"]
    screener = Screener(provider="cpu")
    identities = np.repeat(np.arange(IDENTITIES), VISITS)
    made = [screener.embed(phantom(FIRST_IDENTITY + int(one), at % VISITS))[0] for at, one in enumerate(identities)]
    return np.stack(made), identities


def bounds(statistics_file: Path | None) -> None:
    """Which share of the pairs of different identities each bound leaves within the radius of the bundle's threshold."""
    embeddings, identities = _embedded(statistics_file)
    bundle = open_bundle(None)
    head, coder = bundle.head, Coder(bundle.head)
    codes, slack = coder.encode(embeddings)
    weighted = head.weighted(embeddings)
    low, high = embeddings.min(axis=0), embeddings.max(axis=0)
    pairs = by_l2 = by_bytes = matches = 0
    for at in range(len(embeddings)):
        others = np.flatnonzero(identities[at + 1 :] != identities[at]) + at + 1
        radius = head.radius(bundle.threshold.value, embeddings[at], low, high)
        sums = np.abs(codes[others].astype(np.int32) - codes[at]).sum(axis=1)
        pairs += len(others)
        by_l2 += int((((weighted[others] - weighted[at]) ** 2).sum(axis=1) <= radius).sum())
        by_bytes += int((coder.step * sums - slack[others] - slack[at] <= radius).sum())
        matches += int((head.scores(embeddings[at], embeddings[others]) >= bundle.threshold.value).sum())
    print(
        f"bounds: of {pairs} pairs of different identities {matches} match; squared L2 leaves {by_l2} ({by_l2 / pairs:.2%}), "
        f"the bytes {by_bytes} ({by_bytes / pairs:.4%})",
        flush=True,
    )


def build(folder: Path, vectors: np.ndarray) -> None:
    started = time.perf_counter()
    with Gallery.create(folder, open_bundle(None)) as gallery:
        for at in range(0, len(vectors), ADDED_AT_ONCE):
            gallery.add_all(
                Entry(f"/archive/{number // 1000}/{number}.dcm", number.to_bytes(32, "big"), 1, {0: np.array(vectors[number])})
                for number in range(at, min(at + ADDED_AT_ONCE, len(vectors)))
            )
        added = time.perf_counter()
        gallery.update_caches()
    print(f"adding {added - started:.0f} s, flat cache {time.perf_counter() - added:.0f} s, {_memory()} MB at most", flush=True)


def exact(folder: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    bundle = open_bundle(None)
    limit = bundle.threshold.value
    with Gallery.open(folder, bundle, warn=print) as gallery:
        before = time.perf_counter()
        gallery.search(queries[:1], limit, how="exact")
        print(f"exact: first query, with opening the cache and checking the codes: {time.perf_counter() - before:.2f} s")
        batches, ones = [], []
        busy = time.process_time()
        for at in range(0, 160, 32):
            gallery.search(queries[at : at + 32], limit, how="exact")
        print(f"exact, batches of 32: {1000 * (time.process_time() - busy) / 160:.1f} ms of CPU time a query, all threads")
        for _ in range(3):
            for at in range(0, 160, 32):
                batches.append(_timed(lambda at=at: gallery.search(queries[at : at + 32], limit, how="exact")) / 32)
            ones += [_timed(lambda at=at: gallery.search(queries[at : at + 1], limit, how="exact")) for at in range(0, QUERIES, 10)]
        print(f"exact, batches of 32: {_spread(batches)} ms a query; one at a time: {_spread(ones)} ms")
        left = [len(places) for places in gallery._searcher.flat.candidates(queries[:32], limit, None)]
        print(f"exact: candidates left for the head: median {statistics.median(left):.0f}, most {max(left)}")
        some = gallery.search(queries[:8], limit, how="exact", top=100_000)
        for query, result in zip(queries[:8], some, strict=True):
            scores = np.concatenate([bundle.head.scores(query, vectors[at : at + 20_000]) for at in range(0, len(vectors), 20_000)])
            assert result.total == (scores >= limit).sum(), "a match was missed"
            assert result.nearest is not None
            assert abs(result.nearest.score - scores.max()) < 1e-6, "the nearest was missed"
        print(f"exact: 8 queries as by brute force, {sum(one.total for one in some)} matches", flush=True)


def borrow_graph(folder: Path, count: int) -> None:
    """Build our graph, and let raw hnswlib have it: where two builds would take hours."""
    if not (folder / "graph.json").exists():
        started = time.perf_counter()
        with Gallery.open(folder, open_bundle(None), read_only=False, warn=print) as gallery:
            gallery.update_caches(graph=True)
        taken = time.perf_counter() - started
        print(f"build: ours with opening, saving and sha256 {taken:.0f} s, {_memory()} MB at most", flush=True)
    raw_file = folder.with_name(f"raw-{count}.hnsw")
    raw_file.unlink(missing_ok=True)
    raw_file.symlink_to(next(folder.glob("graph-*.hnsw")).resolve())


def graph(folder: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    bundle = open_bundle(None)
    limit = bundle.threshold.value
    raw_file = folder.with_name(f"raw-{len(vectors)}.hnsw")
    if not raw_file.exists():
        weighted = bundle.head.weighted(vectors)
        started = time.perf_counter()
        raw = hnswlib.Index(space="l2", dim=vectors.shape[1])
        raw.init_index(max_elements=len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=SEED)
        raw.add_items(weighted, np.arange(1, len(vectors) + 1), num_threads=cpu_limit())
        by_hnswlib = time.perf_counter() - started
        raw.save_index(str(raw_file))
        del raw, weighted
        started = time.perf_counter()
        with Gallery.open(folder, bundle, read_only=False, warn=print) as gallery:
            gallery.update_caches(graph=True)
        ours = time.perf_counter() - started
        print(f"build: raw hnswlib {by_hnswlib:.0f} s, ours with opening, saving and sha256 {ours:.0f} s", end="")
        print(f", ratio {ours / by_hnswlib:.2f}", flush=True)
    raw = hnswlib.Index(space="l2", dim=vectors.shape[1])
    raw.load_index(str(raw_file), max_elements=len(vectors))
    raw.set_ef(BEAM)
    weighted = bundle.head.weighted(queries)
    with Gallery.open(folder, bundle, warn=print) as gallery:
        gallery.search(queries[:1], limit, how="hnsw")
        theirs, ours = [], []
        fresh: list[float] = []
        for round_ in range(6):
            for at in range(QUERIES):
                one = _timed(lambda at=at: raw.knn_query(weighted[at : at + 1], k=FIRST_CANDIDATES, num_threads=1))
                other = _timed(lambda at=at: gallery.search(queries[at : at + 1], limit, how="hnsw"))
                if round_:
                    theirs.append(one)
                    ours.append(other)
                else:
                    fresh.append(other)  # rows that no query has led to before: their checksums are compared
        for name, quantile in (("median", 50), ("99th percentile", 99)):
            a, b = np.percentile(theirs, quantile), np.percentile(ours, quantile)
            print(f"one query, {name}: raw hnswlib {a:.2f} ms, ours {b:.2f} ms, ratio {b / a:.2f}", end="")
            print(f"; asked for the first time {np.percentile(fresh, quantile):.2f} ms")
        for how in ("hnsw", "auto"):
            # With the default `top`, as a larger one widens the graph's search; what is found are true matches, so counts will do.
            found = gallery.search(queries, limit, how=how)
            truth = gallery.search(queries, limit, how="exact")
            there, all_ = sum(one.total for one in found), sum(true.total for true in truth)
            verdicts = sum(bool(one.total) == bool(true.total) for one, true in zip(found, truth, strict=True))
            complete = sum(one.complete for one in found)
            print(
                f"{how}: recall of matches {there / all_:.4f} of {all_}; verdicts right {verdicts} of {QUERIES}; "
                f"complete {complete}",
                flush=True,
            )
    program = """
import sys, numpy as np, hnswlib
from lcmem_onnx.runtime.model.bundle import open_bundle
from lcmem_onnx.runtime.gallery import Gallery
queries = np.load(sys.argv[3])
if sys.argv[1] == "raw":
    index = hnswlib.Index(space="l2", dim=queries.shape[1]); index.load_index(sys.argv[2]); index.set_ef(int(sys.argv[4]))
    for query in queries: index.knn_query(query[None], k=int(sys.argv[5]), num_threads=1)
else:
    gallery = Gallery.open(sys.argv[2], open_bundle(None))
    for query in queries: gallery.search(query[None], .9, how="hnsw")
print([int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith(("VmRSS", "VmHWM"))])
"""
    np.save(folder.with_name("queries.npy"), queries)
    for kind, file in (("raw", raw_file), ("ours", folder)):
        command = [
            sys.executable,
            "-c",
            program,
            kind,
            str(file),
            str(folder.with_name("queries.npy")),
            str(BEAM),
            str(FIRST_CANDIDATES),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"memory in search, {kind}: [highest, now] {said} MB", flush=True)


def opening(folder: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    image = sorted(IMAGE.iterdir())[0]
    command = [sys.executable, "-m", "lcmem_onnx.cli", "scan", str(image), "--index", str(folder), "--json", "-q"]
    taken = []
    for _ in range(7):
        before = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        taken.append(time.perf_counter() - before)
    print(f"opening and scanning one image, whole process: {_spread(taken, 2)} s", flush=True)


def _timed(work: object) -> float:
    """Milliseconds."""
    before = time.perf_counter()
    work()  # type: ignore[operator]
    return 1000 * (time.perf_counter() - before)


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(cpu_limit()))
    main()
