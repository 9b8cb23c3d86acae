"""What other programs read of an experiment: results, model cards, tables. A format a file."""
