"""Running stages: what a stage is, what is missing, who does the work."""
