#!/usr/bin/env python3
"""Sorts an inbox: what is clear goes to one folder, everything else to another. An example of the runtime in a script of one's own.

    sort_inbox.py INBOX INDEX CLEAR HELD

Files move whole (all folders must be on one file system), and a file is clear only if every frame of it is. `HELD` gets, beside
each file, the lines of JSON that say why. Run it again at any time: what was moved is gone from the inbox.
Exit codes: 0 all clear, 1 something matched, 2 something could not be judged.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import groupby
from pathlib import Path

from lcmem_onnx import Gallery, LcmemError, Result, Screener, Verdict


def main(arguments: list[str]) -> int:
    if len(arguments) != 4:
        print("usage: sort_inbox.py INBOX INDEX CLEAR HELD", file=sys.stderr)
        return 2
    inbox, index, clear, held = map(Path, arguments)
    try:
        clear.mkdir(parents=True, exist_ok=True)
        held.mkdir(parents=True, exist_ok=True)
        files = sorted(path for path in inbox.iterdir() if path.is_file())
        screener = Screener()
        worst = 0
        with Gallery.open(index, screener.bundle) as gallery:
            for name, results in groupby(screener.screen(files, gallery, search="exact"), key=lambda result: result.path):
                worst = max(worst, sort(Path(name), list(results), clear, held))
    except (LcmemError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return worst


def sort(path: Path, results: list[Result], clear: Path, held: Path) -> int:
    """Move one file by the verdicts on its frames; the exit code that it asks for."""
    verdicts = {result.verdict for result in results}
    complete = all(result.complete for result in results)  # false where the search graph was used, which may miss a match
    if verdicts == {Verdict.CLEAR} and complete:
        move(path, clear)
        return 0
    # The reason first: a file that is held is never without it.
    reason = held / f"{path.name}.json"
    reason.write_text("".join(json.dumps(result.as_json()) + "\n" for result in results), encoding="utf-8")
    move(path, held)
    return 2 if Verdict.ERROR in verdicts or not complete else 1


def move(path: Path, folder: Path) -> None:
    """Rename, and never over a file that is there."""
    os.link(path, folder / path.name)
    path.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
