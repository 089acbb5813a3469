"""The one error hierarchy of lcmem-onnx.

Every error that a user's input can cause is an :class:`LcmemError`; anything else that escapes is a defect of ours.
A message says what happened, where (a path, a key) and, where it is known, what to do about it.

    LcmemError                 anything below
    ├── UsageError             a request that cannot be met as it was put (an option, an argument)
    ├── ImageError           one image cannot be screened; carries a stable `reason` code
    ├── BundleError            a model bundle is missing, damaged or of another format
    ├── ProviderError          the execution provider asked for is not in use
    ├── EncodingError          the network gave something that is no embedding (not finite, wrong shape)
    ├── GalleryError           an index is missing, damaged, locked, or of another format
    │   ├── GalleryMismatchError  the index belongs to another bundle
    │   └── KeyConflictError      a key is taken by another image
    ├── CheckpointError        a checkpoint or VAE cannot be loaded
    ├── ExportError            an exported graph failed a check, or differs from torch
    ├── FileListError          a CSV file list lacks something, or an identity is in two splits
    ├── ArchiveError           an archive cannot be asked: its address, our credentials, its silence
    ├── GatewayError           the gateway cannot start or go on: its spool, its audit trail, a port, a certificate
    │   └── ConfigError            gateway.toml has an unknown key, a value of another type, or parts that do not fit
    └── TrainingError          a training cannot start or go on: its configuration, its disk, its loss
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "ArchiveError",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "EncodingError",
    "ExportError",
    "FileListError",
    "GalleryError",
    "GalleryMismatchError",
    "GatewayError",
    "ImageError",
    "KeyConflictError",
    "LcmemError",
    "ProviderError",
    "Reason",
    "TrainingError",
    "UsageError",
]


class Reason(StrEnum):
    """Why an image got its verdict: codes that programs may rely on, across versions.

    The first two go with the verdicts `clear` and `match`, the others with `error`.
    """

    BELOW_THRESHOLD = "below-threshold"
    AT_OR_ABOVE_THRESHOLD = "at-or-above-threshold"

    NOT_FOUND = "not-found"
    NO_PERMISSION = "no-permission"
    NOT_A_FILE = "not-a-file"
    READ_FAILED = "read-failed"
    EMPTY_FILE = "empty-file"
    EMPTY_FOLDER = "empty-folder"
    LINK_TO_FOLDER = "link-to-folder"
    TOO_LARGE = "too-large"
    NOT_AN_IMAGE = "not-a-picture"
    UNSUPPORTED = "unsupported"
    DAMAGED = "damaged"
    NO_PIXELS = "no-pixels"
    BLANK = "blank"
    OUT_OF_MEMORY = "out-of-memory"
    TIMED_OUT = "timed-out"
    DECODER_FAILED = "decoder-failed"
    NOT_FINITE = "not-finite"
    SUSPICIOUS_HEADER = "suspicious-header"
    KEY_CONFLICT = "key-conflict"


class LcmemError(Exception):
    """Base of every error that lcmem-onnx raises on purpose."""


class UsageError(LcmemError):
    """A request that cannot be met as it was put."""


class ImageError(LcmemError):
    """One image cannot be screened; `reason` is a stable code, the message is for people.

    The message does not repeat the image's path: whoever reports the error knows it.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BundleError(LcmemError):
    """A model bundle is missing, damaged, or of a format this version does not read."""


class ProviderError(LcmemError):
    """The execution provider that was asked for cannot be used, or is not what the session runs on."""


class EncodingError(LcmemError):
    """The network's output is no embedding: not finite, out of range or of the wrong shape."""


class GalleryError(LcmemError):
    """An index is missing, damaged, locked by another writer, or of a format this version does not read."""


class GalleryMismatchError(GalleryError):
    """The index was made with another bundle, so its embeddings cannot be compared with this one's."""


class KeyConflictError(GalleryError):
    """A key is in the index already, for an image with other content."""


class CheckpointError(LcmemError):
    """A checkpoint or VAE file cannot be loaded: not a state dict, missing or surplus keys, other shapes."""


class ExportError(LcmemError):
    """An exported graph failed a structural check, or disagrees with torch."""


class FileListError(LcmemError):
    """A CSV file list cannot be read, lacks a column or an image, or puts one identity into two splits."""


class GatewayError(LcmemError):
    """The gateway cannot start, go on, or do what was asked: its spool, its audit trail, a port, a certificate."""


class ConfigError(GatewayError):
    """The gateway's configuration cannot be read: an unknown key, a value of another type, parts that do not go together."""


class TrainingError(LcmemError):
    """A training cannot start or go on: an unknown configuration key, no space, a loss that is not finite."""


class ArchiveError(LcmemError):
    """An archive cannot be asked: a wrong address, credentials it refuses, or no answer after many attempts."""
