"""Experiment files that are written for the user: of published experiments, and for a corpus of one's own."""
