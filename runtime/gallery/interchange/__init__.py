"""Galleries as npz or Parquet files, for backups, moves and merges."""
