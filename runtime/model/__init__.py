"""A bundle on disk and its encoder on onnxruntime: RGB frames to embeddings, two embeddings to a score."""
