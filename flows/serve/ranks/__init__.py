"""The ranks of every query of a split under every evaluated run, as arrays that are sorted and filtered quickly."""
