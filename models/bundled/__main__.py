"""`python -m lcmem_onnx.models.bundled`: train, measure and export the bundled model."""

from .bundled import main

if __name__ == "__main__":
    main()
