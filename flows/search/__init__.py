"""Searching a trained method's gallery: by a sentence for items, by an item for captions."""
