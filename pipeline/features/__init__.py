"""Features that somebody else extracted: in, out, and compared."""
