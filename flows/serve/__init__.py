"""The web application of `crossreel serve`: search, watch, turn, compare; it reads and never writes."""
