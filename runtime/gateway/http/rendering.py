"""An image drawn for the page, in a process of its own, from stdin to stdout: `python -m ...http.rendering FRAME SIDE`.

What is in quarantine may be made to harm whoever decodes it, so a child does that, bounded in memory, time and what it may open.
"""

from __future__ import annotations

import resource
import sys

__all__ = ["main"]

MEMORY_BYTES = 6 << 30
SECONDS = 20
FAILED = 3
"""The child's exit code when the image cannot be drawn; it writes the reason."""


def main(arguments: list[str]) -> int:
    frame, side = int(arguments[0]), int(arguments[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import io
    import warnings

    from PIL import Image

    from ...errors import ImageError, Reason
    from ...images.image import open_image

    warnings.simplefilter("ignore")
    try:
        image = open_image(sys.stdin.buffer.read(), name_hint="object.dcm")
        if frame >= image.frames:
            raise ImageError(Reason.NOT_FOUND, f"it has {image.frames} frames")
        drawn = Image.fromarray(image.frame(frame))
        drawn.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        drawn.save(out, "PNG")
        sys.stdout.buffer.write(out.getvalue())
    except ImageError as error:
        sys.stdout.write(error.reason)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
