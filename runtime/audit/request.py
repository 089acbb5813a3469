"""What the user asks an audit for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import UsageError
from ..model.head import check_threshold
from ..model.strangers import check_rate

__all__ = ["Progress", "Request", "check_request", "without_progress"]

T = TypeVar("T")


class Progress(Protocol):
    """Passes items on, and may show how far it is."""

    def __call__(self, items: Iterable[T], total: int, what: str, /) -> Iterable[T]:
        """Yield `items`, of which there are `total`; `what` says what is done with them."""
        ...


def without_progress(items: Iterable[T], total: int, what: str, /) -> Iterable[T]:
    """Pass items on and show nothing."""
    return items


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        released: folder of images that are to be released.
        reference: folder of images that must not be given away, or an index of them.
        out: folder for the report and its private part.
        holdout: folder of images like the reference's that are not in it.
        threshold: score in (0, 1); None chooses one (see `thresholds`).
        wanted: share of images without a copy that may reach a chosen threshold.
        tta: look at released images mirrored and turned too.
        search: how an index is searched: "auto", "exact" or "hnsw".
        top: reference images to list for one released image.
        labels: CSV file with a class or data set for released images.
        fpir: as `wanted`, where there is no hold-out and the bundle's strangers set the threshold; None takes 5 %.
        patients: CSV file with the patients of images of any set (see `Patients`).
        ignore_patients: take no notice of the patients in DICOM headers, which may be anonymous.
        suspects: "leave-out" suspects of the hold-out (see `suspects`), or "keep" those that are not certain.
    """

    released: Path
    reference: Path
    out: Path
    holdout: Path | None = None
    threshold: float | None = None
    wanted: float = 0.01
    tta: bool = False
    search: str = "auto"
    top: int = 10
    labels: Path | None = None
    fpir: float | None = None
    patients: Path | None = None
    ignore_patients: bool = False
    suspects: str = "leave-out"


def check_request(request: Request) -> None:
    """Check the values of a request. Its files and folders are checked when they are read.

    Raises:
        UsageError: a value is out of range, or two of them contradict each other.
    """
    if request.threshold is not None:
        check_threshold(request.threshold)
    if request.fpir is not None and check_rate(request.fpir) and request.holdout:
        raise UsageError("a hold-out sets the threshold by the wanted rate (--wanted-rate): leave --fpir away, or the hold-out")
    if request.top < 1:
        raise UsageError(f"{request.top} matches cannot be listed; ask for 1 or more")
    if request.suspects not in ("leave-out", "keep"):
        raise UsageError(f"suspects must be leave-out or keep, got {request.suspects}")
