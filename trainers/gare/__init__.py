"""GARE: Gap-Aware Retrieval (NeurIPS 2025), an increment of every caption for every video it is compared with."""
