"""Pages, tables and files made from finished evaluations."""
