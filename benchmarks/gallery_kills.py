"""kill -9 at random moments of adding, building caches, compacting and erasing: nothing acknowledged lost, nothing erased back.

python benchmarks/gallery_kills.py FOLDER [--kills 200] [--seed 0]

A worker process changes an index and says through a pipe what it begins and what has been acknowledged; it is killed after a random
time. (Workers are forked from a server that has imported everything, so that the time hits the work.) Then the index is opened,
first for reading, as a scan would, and every acknowledged image must be found by its own embedding, exactly and through the
graph, every erased one must not, and what was in flight may be either, but whole. The next worker goes on with the same index.
Caches are written from 20 embeddings on, so that each kill may meet each kind of file.
A killed process is not a power cut: what is lost there is what the disk had not written yet, for which SQLite's synchronous=FULL
and the fsync before each rename stand, and which no test here can show.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import multiprocessing
import random
import signal
import tempfile
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from lcmem_onnx.runtime.gallery import Entry, Gallery
from lcmem_onnx.runtime.gallery.search import exact, l1_codes, searcher, vector_cache
from lcmem_onnx.runtime.model.bundle import Bundle, Threshold
from lcmem_onnx.runtime.model.head import Head

FEATURES = 64
PER_PATIENT = 3
LIMIT = 0.9


def bundle() -> Bundle:
    head = Head(-np.random.default_rng(3).exponential(3.0, FEATURES).astype(np.float32), 6.0)
    return Bundle(Path(), "kills", 64, FEATURES, head, Threshold(0.5, "none"), {}, "f" * 64, demonstration=True, manifest={})


def embedding(number: int) -> np.ndarray:
    return np.random.default_rng([9, number]).random(FEATURES, dtype=np.float32)


def entry(number: int) -> Entry:
    return Entry(f"/{number}.png", number.to_bytes(32, "big"), 1, {0: embedding(number)}, patient=f"p{number // PER_PATIENT}")


def small_caches() -> None:
    for module in (exact, searcher):
        module.CACHE_FROM = 20
    for module in (l1_codes, vector_cache, exact):
        module.BLOCK = 64
    exact.READ_AT_ONCE = 50
    searcher.exact_enough = lambda count, width: count <= 30
    searcher.UNGRAPHED = 10
    searcher.FIRST_CANDIDATES = 16  # what is asked for is in the graph itself, and there are thousands of questions


def work(folder: Path, start: int, seed: int, pipe: Connection) -> None:
    """Change the index until killed. Each message: begin or done, what, and of which images."""
    small_caches()

    def say(phase: str, kind: str, its: Iterable[int] = ()) -> None:
        pipe.send((phase, kind, list(its)))

    chance = random.Random(seed)
    number = start
    say("begin", "open")  # which finishes an interrupted compaction
    with Gallery.open(folder, bundle(), read_only=False) as gallery:
        say("done", "open")
        while True:
            kind = chance.choices(["add", "several", "caches", "erase", "compact"], [6, 3, 3, 3, 2])[0]
            its = range(number, number + (1 if kind == "add" else PER_PATIENT * chance.randint(1, 10)))
            if kind in ("add", "several"):
                say("begin", "add", its)
                gallery.add_all(entry(one) for one in its)
                say("done", "add", its)
                number = its[-1] + 1
            elif kind == "caches":
                say("begin", "caches")
                gallery.update_caches(graph=chance.random() < 0.5)
                say("done", "caches")
            elif kind == "erase" and number:
                patient = chance.randrange(number) // PER_PATIENT
                its = range(patient * PER_PATIENT, (patient + 1) * PER_PATIENT)
                say("begin", "erase", its)
                gallery.remove(patient=f"p{patient}", compact=chance.random() < 0.5)
                say("done", "erase", its)
            else:
                say("begin", "compact")
                gallery.compact()
                say("done", "compact")


def check(folder: Path, there: set[int], gone: set[int], doubtful: set[int]) -> None:
    numbers = np.array(sorted(there | gone | doubtful), np.int64)
    if not len(numbers):
        return
    queries = np.stack([embedding(int(one)) for one in numbers])
    with Gallery.open(folder, bundle()) as gallery:
        assert len(there) <= len(gallery) <= len(there | doubtful), (len(there), len(gallery))
        for how in ("exact", "hnsw"):
            for number, result in zip(numbers.tolist(), gallery.search(queries, LIMIT, how=how, top=50), strict=True):
                found = f"/{number}.png" in {hit.key for hit in result.matches}
                assert found or number not in there, f"{number} was acknowledged and is lost ({how})"
                assert not found or number not in gone, f"{number} was erased and is back ({how})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="for the index; a temporary one when left out")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    small_caches()
    with tempfile.TemporaryDirectory() as temporary:
        _kill(options.folder or Path(temporary) / "index", options.kills, options.seed)


def _kill(folder: Path, kills: int, seed: int) -> None:
    context = multiprocessing.get_context("forkserver")
    chance = random.Random(seed)
    Gallery.create(folder, bundle()).close()
    there: set[int] = set()
    gone: set[int] = set()
    number = 0
    during: collections.Counter[str] = collections.Counter()
    for kill in range(kills):
        pipe, other = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(folder, number, seed * 100_003 + kill, other))
        process.start()
        other.close()
        messages = [pipe.recv()]
        if chance.random() < 0.9:  # mostly, the time counts from when it is open
            messages.append(pipe.recv())
        time.sleep(chance.expovariate(1 / 0.25))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"the worker ended by itself, with {process.exitcode}"
        with contextlib.suppress(EOFError):
            while True:
                messages.append(pipe.recv())
        pipe.close()
        pending: tuple[str, set[int]] = ("nothing", set())
        for phase, kind, rest in messages:
            its = set(rest)
            if phase == "begin":
                pending = kind, its
                continue
            pending = "between", set()
            if kind == "add":
                there, gone = there | its, gone - its  # of an erased patient's numbers some had not been used
            elif kind == "erase":
                there, gone = there - its, gone | its
        kind, doubtful = pending
        during[kind] += 1
        touched = there | gone | doubtful
        number = PER_PATIENT * (max(touched, default=-1) // PER_PATIENT + 1)
        if kind == "erase":
            doubtful -= gone
        gone -= doubtful
        check(folder, there - doubtful, gone, doubtful)
        # What was in flight is one or the other now, as the index says, all or none of it.
        with Gallery.open(folder, bundle()) as gallery:
            kept = {one for one in doubtful if gallery._store.content_of(f"/{one}.png", "default")}
        assert kept in (set(), doubtful & (there | kept)), f"half of {kind} {sorted(doubtful)} is there"
        there, gone = (there - doubtful) | kept, gone | (doubtful - kept)
        if (kill + 1) % 20 == 0:
            print(f"{kill + 1} kills, {len(there)} images there, {len(gone)} gone; during {dict(during)}", flush=True)
    with Gallery.open(folder, bundle(), read_only=False) as gallery:
        gallery.compact()
    data = b"".join(path.read_bytes() for path in folder.iterdir())
    assert not [one for one in gone if embedding(one).tobytes() in data], "an erased embedding is still on the disk"
    assert all(embedding(one).tobytes() in data for one in there)
    print(f"{kills} kills: nothing acknowledged lost, nothing erased back, nothing erased left on the disk")


if __name__ == "__main__":
    main()
