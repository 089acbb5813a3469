"""The version of the code that turns a file into what the network sees.

Two versions of this package may make different renderings of one file: one more of them, other pixels, one more frame. Their
embeddings compare, but a copy that one version finds the other may miss. So an index keeps with each row the version that read
the image, and `index upgrade` reads the older ones again.

    1  lcmem-onnx 0.1.0
    2  look-up tables in every encoding, supplemental palettes, transparency on white and on black, embedded images, more formats,
       fill values that no header declares

Raise it by one with each release in which some file gets another rendering, or is read for the first time.
"""

from __future__ import annotations

__all__ = ["FIRST_READER", "READER_VERSION"]

FIRST_READER = 1
"""What rows are of that were written before versions were kept."""
READER_VERSION = 2
