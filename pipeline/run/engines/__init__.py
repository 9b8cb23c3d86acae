"""Where the shards of a stage are worked on: processes of this machine, or Ray actors."""
