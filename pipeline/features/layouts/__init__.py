"""Layouts of feature files that other programs write."""
