"""Hyperbolic geometry as plain functions."""
