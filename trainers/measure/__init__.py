"""Scores, ranks, metrics, and the search over a trained method's encodings."""
