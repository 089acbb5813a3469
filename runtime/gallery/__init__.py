"""The gallery: embeddings kept, a search graph cached beside them, matches found."""

from .gallery import Added, Gallery
from .pseudonyms import SiteKey
from .records import DEFAULT_GALLERY, Entry, Record, check_gallery_name
from .results import Hit, Identity, Search, SearchResult
from .verification import Verification

__all__ = [
    "DEFAULT_GALLERY",
    "Added",
    "Entry",
    "Gallery",
    "Hit",
    "Identity",
    "Record",
    "Search",
    "SearchResult",
    "SiteKey",
    "Verification",
    "check_gallery_name",
]
