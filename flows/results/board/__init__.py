"""Published figures as data files with their source, a linter of them, and ours beside them."""
