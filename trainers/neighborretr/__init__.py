"""NeighborRetr: text-video retrieval that balances hubs by the neighbours of a memory bank (CVPR 2025)."""
