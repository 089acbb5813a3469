"""The machine: processors, atomic writes, processes."""
