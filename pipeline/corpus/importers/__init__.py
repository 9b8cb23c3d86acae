"""Public corpora: one module reads the annotation files of one corpus and yields a manifest."""
