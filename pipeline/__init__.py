"""Ground floor: corpus, stages, fingerprints, plan, store, video. Knows no model, no torch, no Prefect."""
