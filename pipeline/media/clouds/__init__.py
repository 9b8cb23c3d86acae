"""Point clouds: readers of files in many formats, and sampling of points."""
