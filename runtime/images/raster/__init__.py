"""Raster images (PNG, JPEG, TIFF, WebP and others) to RGB frames."""
