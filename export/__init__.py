"""Checkpoint to bundle, with proof: trace the network, check the graph, compare with torch in a fresh process, package."""
