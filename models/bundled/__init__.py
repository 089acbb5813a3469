"""The model that ships: its recipe, its training images, and the command that makes it. Not part of the wheel."""
