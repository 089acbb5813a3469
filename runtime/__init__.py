"""What runs in the hospital: a bundle on disk, images in, verdicts out. No torch, no onnx, no network.

Rooms, from the ground up: `errors`, `machine`, `depth`, `files`, `preprocess`; `head`, `strangers`, `bundle`, `providers`;
`codestream`, `identifiers`, `dicom`, `raster`, `images`; `encoder`; `gallery`; `screening`. A room imports only from those before
it.
"""
