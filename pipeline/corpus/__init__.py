"""The corpus: manifest of items and captions, digests of their content, checks, and importers."""
