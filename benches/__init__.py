"""Benchmarks: synthetic checkpoints at real shapes, and pocketlm beside its peers."""
