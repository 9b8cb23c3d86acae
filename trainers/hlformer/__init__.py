"""HLFormer: partially relevant video retrieval with hyperbolic attention (ICCV 2025)."""
