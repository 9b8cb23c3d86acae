"""Trained runs: methods that were trained in a store, usable whatever became of their experiment since."""
