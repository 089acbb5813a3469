from __future__ import annotations
from .notes import Note
class Embedded:
    notes: set[Note] = set()
    def compare(self, x): pass
def find_embedded(data, kind, source, limits): return Embedded()
