"""The verbs of the command line, a file a noun. Each parses, calls down, and prints."""
