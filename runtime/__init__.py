"""What runs in the hospital: a bundle on disk, images in, verdicts out. No torch, no onnx, no network.

Which room may import which is in `pyproject.toml` ([tool.importlinter]), from top to bottom.
"""

if __name__ != "lcmem_onnx.runtime":
    # From a checkout's root this would be a second copy, whose exceptions are not those of the first.
    raise ImportError(f"import lcmem_onnx.runtime instead of {__name__}: 'pip install -e .[cpu]' makes it importable in a checkout")
