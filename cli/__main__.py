"""`python -m lcmem_onnx.cli`, the same as the script `lcmem-onnx`."""

from . import main

main()
