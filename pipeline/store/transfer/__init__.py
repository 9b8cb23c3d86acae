"""Copies of a store's artifacts elsewhere, under any URL that fsspec knows: published, and fetched again."""
