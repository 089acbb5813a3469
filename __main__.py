"""`python -m lcmem_onnx`, the same as the script `lcmem-onnx`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="lcmem-onnx")
