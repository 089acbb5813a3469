"""LCMem in torch: the networks, their checkpoints, and what trains them. Nothing here is needed at run time."""
