"""Files to RGB frames: find files, detect their format, decode them in a sandbox, resize them to the network's input."""
