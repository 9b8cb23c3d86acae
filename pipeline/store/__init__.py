"""Artifacts on disk: fingerprints, segments, the index, and copies elsewhere."""
