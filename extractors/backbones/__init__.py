"""Networks without input or output, and where their weights come from."""
