"""The report: one self-contained HTML page of an experiment."""
