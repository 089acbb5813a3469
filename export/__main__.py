"""`python -m export`, in a checkout as after installation: both run the one copy in `lcmem_onnx.export`."""

from lcmem_onnx.export.command import main

if __name__ == "__main__":
    main(prog_name="python -m export")
