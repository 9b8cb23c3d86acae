"""Second floor: methods that learn from the store, the engine that trains them, the metrics that judge them."""
