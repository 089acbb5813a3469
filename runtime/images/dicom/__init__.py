"""DICOM objects to RGB frames."""
