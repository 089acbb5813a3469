"""`python -m export`, in a checkout as after installation: both run the one copy in `lcmem_onnx.export`."""

import sys

if __name__ == "__main__":
    try:
        from lcmem_onnx.export.command import main
    except ModuleNotFoundError as error:
        if error.name != "lcmem_onnx":
            raise
        print("error: lcmem-onnx is not installed here: run pip install -e '.[cpu,export]' in the checkout", file=sys.stderr)
        sys.exit(2)
    main(prog_name="python -m export")
