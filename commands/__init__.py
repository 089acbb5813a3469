"""The commands of `lcmem-onnx`: one module for each command or group. They parse options, call the runtime and print."""
