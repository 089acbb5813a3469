"""The tables of the gallery's file, version 4. Each distinct embedding is one row of `vectors`, however many images have it:
copies are what is sought, and a search graph with many equal points makes some of them unreachable. `vectors.digest` is the
sha256 of the embedding's bytes; it makes equal vectors one, and shows a damaged one when it is read.

A frame has a row of `pictures` for each of its renderings that differ, numbered from 0. `reader` is the version of the code that
made the rendering (see `reader`).

`erased` lists the ids of vectors that are gone, in the order in which they went, so that another process's open gallery learns
of it. An id is never used again (AUTOINCREMENT) and says nothing of the image, so the list is kept for good.
"""

from __future__ import annotations

CALIBRATION_SETTING = "calibration"
"""Key of the gallery's calibration in its settings (see `calibration.threshold`)."""
__all__ = [
    "CALIBRATION_SETTING",
    "COLUMNS",
    "DATABASE",
    "ERASED",
    "FORMAT_VERSION",
    "PICTURES",
    "PICTURE_COLUMNS",
    "SCHEMA",
    "SETTINGS",
    "VECTORS",
]

DATABASE = "gallery.sqlite"
FORMAT_VERSION = 4

PICTURE_COLUMNS = {
    2: "key, frame, frames, content, vector",
    3: "key, frame, frames, content, vector, gallery, patient, study, rendering",
    4: "key, frame, frames, content, vector, gallery, patient, study, rendering, reader",
}
"""What the tally of `pictures` is taken over, by format version."""
COLUMNS = PICTURE_COLUMNS[FORMAT_VERSION]

VECTORS = """
CREATE TABLE vectors (id INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, embedding BLOB NOT NULL);
"""
PICTURES = """
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    frame INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    content BLOB NOT NULL,
    vector INTEGER NOT NULL REFERENCES vectors(id),
    gallery TEXT NOT NULL,
    patient TEXT,
    study TEXT,
    rendering INTEGER NOT NULL,
    reader INTEGER NOT NULL,
    UNIQUE (gallery, key, frame, rendering)
);
CREATE INDEX pictures_by_content ON pictures (content);
CREATE INDEX pictures_by_vector ON pictures (vector);
CREATE INDEX pictures_by_key ON pictures (key);
CREATE INDEX pictures_by_patient ON pictures (patient) WHERE patient IS NOT NULL;
CREATE INDEX pictures_by_study ON pictures (study) WHERE study IS NOT NULL;
"""
SETTINGS = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
ERASED = """
CREATE TABLE erased (number INTEGER PRIMARY KEY AUTOINCREMENT, vector INTEGER NOT NULL);
"""
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
{VECTORS}{PICTURES}{SETTINGS}{ERASED}"""
