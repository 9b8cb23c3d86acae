"""Point clouds: files of many kinds to coordinates and colours, and which points are taken."""
