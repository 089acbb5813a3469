"""Generated training images: phantoms, scenes and deformed slices. Not part of the wheel."""
