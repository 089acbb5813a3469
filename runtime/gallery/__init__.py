"""The gallery: embeddings kept, a search graph cached beside them, matches found."""

from .gallery import Added, Gallery, Hit, Search

__all__ = ["Added", "Gallery", "Hit", "Search"]
