"""What there is: the manifest of items and captions, its content, its checks, its importers."""
