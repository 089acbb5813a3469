"""Flags on what a file holds besides the pixels that are screened. They are reported, and left to the caller's rules.

A verdict is on the frames. An overlay is drawn over them by viewers but is not in them; an icon, and pixels in a sequence or in
private elements, are images of their own. None of them is rendered here, so that a verdict `clear` does not vouch for them.

Some flags are of headers that no sound device writes, though the pixels decode: `SUSPICIOUS`. A gallery takes such images; to
pass one on as clear is another matter, and `screening` does not. Elements that devices do write badly (a character set's name, a
window of width 0) are flagged, and do not change the verdict.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["PRIVATE_BYTES", "SUSPICIOUS", "ContentFlag"]

PRIVATE_BYTES = 1 << 16
"""Private and unknown elements that hold more than this together are noted: there is room for an image in them."""


class ContentFlag(StrEnum):
    """Codes that programs may rely on, across versions."""

    OVERLAY = "overlay"
    """Graphics in groups 6000 to 60FF, which viewers draw over the image. They may spell a name."""
    BURNED_IN_ANNOTATION = "burned-in-annotation"
    """The header says that the pixels themselves have annotations that identify the patient."""
    RECOGNIZABLE_FEATURES = "recognizable-visual-features"
    """The header says that a face can be recognised in the pixels, or made from them."""
    ICON = "icon"
    """An icon: a small image of its own, often of what the frames showed before they were changed."""
    NESTED_PIXELS = "nested-pixels"
    """Pixels in a sequence that is no icon's."""
    PRIVATE_DATA = "private-data"
    """More than 64 KiB in private elements, in elements that DICOM does not know, or in padding behind the pixels."""
    ENCAPSULATED_DOCUMENT = "encapsulated-document"
    """A PDF or another document."""
    TWO_FORMATS = "two-formats"
    """The 128 bytes before the header are not empty: the file may be read as another format too, with another image."""
    UNREADABLE_ELEMENTS = "unreadable-elements"
    """Some elements could not be read, or there were too many to look at all."""
    EXECUTABLE_PREAMBLE = "executable-preamble"
    """The 128 bytes before the header are those of a program (CVE-2019-11687)."""
    MALFORMED_IDENTIFIER = "malformed-identifier"
    """A UID with other characters than digits and dots, or an identifier with control characters."""
    UNKNOWN_CHARACTER_SET = "unknown-character-set"
    """Its texts are in a character set that DICOM does not know."""
    USELESS_RESCALE = "useless-rescale"
    """A rescale slope that is empty, 0 or not a number: it is left out."""
    USELESS_WINDOW = "useless-window"
    """The first window is unusable, such as one of width 0: it is left out."""
    USELESS_TABLE = "useless-table"
    """A modality or VOI LUT is empty, or gives one value for all: it is left out."""
    USELESS_FRAME_COUNT = "useless-frame-count"
    """The number of frames is not a number, or below 1: the pixels tell it."""
    USELESS_PALETTE = "useless-palette"
    """The header says that some values of a grayscale image have colors, but no palette can be read: it is left out."""
    SUPPLEMENTAL_PALETTE = "supplemental-palette"
    """Some values of a grayscale image have colors, which many viewers do not show. Frames are screened in color and in gray."""
    EMBEDDED_IMAGE = "embedded-image"
    """A thumbnail or preview in the metadata of a raster image that does not show what the image shows, or cannot be compared."""
    AUXILIARY_IMAGE = "auxiliary-image"
    """A depth map, gain map or another image of a HEIC, AVIF, JPEG 2000 or JPEG XL file that viewers do not show."""
    APPENDED_DATA = "appended-data"
    """Data after the end of a raster image, or between its parts: another image, a video, an archive."""
    HIDDEN_PIXELS = "hidden-pixels"
    """Fully transparent pixels whose colors vary: an image that shows once the transparency is dropped."""
    EXTRA_CHANNELS = "extra-channels"
    """Channels beyond color and transparency."""


SUSPICIOUS = frozenset(
    {
        ContentFlag.EXECUTABLE_PREAMBLE,
        ContentFlag.MALFORMED_IDENTIFIER,
        ContentFlag.UNREADABLE_ELEMENTS,
    }
)
