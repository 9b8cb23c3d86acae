"""H2ARN: text-3D retrieval in hyperbolic space with cones of entailment."""
