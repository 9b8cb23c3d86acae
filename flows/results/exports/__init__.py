"""Exports of an experiment for other programs: results, model cards, tables; one module for each format."""
