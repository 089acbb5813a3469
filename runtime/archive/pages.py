"""A listing read page by page, from a server that may change meanwhile.

Offsets count from the listing's beginning: when something before them is deleted, all that follows moves up and what stood at the
border would be passed over without a word. So each page begins with the last item of the one before; where that is another, the
listing has moved and is read again from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from ..errors import ArchiveError

__all__ = ["PAGE", "read_pages"]

PAGE = 200
AGAIN = 5
T = TypeVar("T")


def read_pages(fetch: Callable[[int, int], Sequence[T]], identity: Callable[[T], str], page: int = PAGE) -> Iterator[T]:
    """Every item of a listing, in its order. One that moved while it was read yields some items again.

    Args:
        fetch: (offset, limit) to the items there, fewer at the end. A server may give fewer than the limit elsewhere too (it may
            have one of its own), or all of them at once.
        identity: what an item is told by.
        page: how many to ask for.

    Raises:
        ArchiveError: the server ignores the offset, or the listing moves all the time.
    """
    for _ in range(AGAIN):
        if (yield from _once(fetch, identity, page)):
            return
    raise ArchiveError(f"the archive's listing changed {AGAIN} times while it was read: try again when less is deleted there")


def _once(fetch: Callable[[int, int], Sequence[T]], identity: Callable[[T], str], page: int) -> Generator[T, None, bool]:
    """Read to the end (True), or to where the listing has moved (False)."""
    read = 0
    first = last = None
    while True:
        items = fetch(max(read - 1, 0), page)
        if read:
            if not items or identity(items[0]) != last:
                if items and read > 1 and identity(items[0]) == first:
                    if read > page:  # neither offset nor limit: that was all there is
                        return True
                    raise ArchiveError(
                        "the archive gives the same page for every offset: ask for less, with --query, a day at a time"
                    )
                return False
            items = items[1:]
        if not items:
            return True
        yield from items
        read += len(items)
        first = identity(items[0]) if first is None else first
        last = identity(items[-1])
