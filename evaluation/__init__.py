"""Measures a bundle, and baselines beside it, on a file list: the paper's two protocols (arXiv 2512.14421), without torch."""
