"""Opening media files: videos, sampled frames, point clouds."""
