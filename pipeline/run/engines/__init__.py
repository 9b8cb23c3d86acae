"""Engines, which run the shards of a stage: in processes of this machine, or in Ray actors."""
