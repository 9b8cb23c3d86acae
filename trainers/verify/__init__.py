"""Recorded numerical cases of the authors' code, a module a method."""
