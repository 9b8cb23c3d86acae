"""Hyperbolic geometry in the Lorentz model, as plain functions."""
