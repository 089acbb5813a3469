"""Thresholds for a gallery: set on images of strangers, measured, and projected to larger galleries."""
