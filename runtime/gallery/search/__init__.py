"""The search over a gallery's embeddings: exact by codes, or approximate through an HNSW graph."""
