"""The part that answers over HTTP, as a process of the service runs it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .spool import Spool

if TYPE_CHECKING:
    from .parts import Part

__all__ = ["run_web"]

STUCK_SECONDS = 600.0
INDEX_FILE = "gallery.sqlite"
"""In an index's folder. Not imported, since the gallery's package brings the whole search along."""


def run_web(part: Part) -> None:
    """Answer until the part is to stop. Ends early when the server does, and is then started anew."""
    from .http.server import HttpServer

    with Spool(part.settings) as spool:

        def ready() -> dict[str, bool]:
            """An object that waits for long means that the screening does not run, whatever its process says; and while an index
            is not there, all that is for it is held."""
            oldest = spool.oldest_waiting()
            indexes = {f"index {gallery.name}": (gallery.index / INDEX_FILE).is_file() for gallery in part.settings.gallery}
            return {"screening": oldest is None or time.time() - oldest < STUCK_SECONDS, **indexes}

        server = HttpServer(part.settings, spool, ready)
        server.start()
        part.ready({"http_port": server.port})
        while not part.stop.wait(0.2) and not server.failed.is_set():
            pass
        server.stop()
