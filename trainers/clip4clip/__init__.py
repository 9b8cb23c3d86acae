"""CLIP4Clip: CLIP fine-tuned for video retrieval, and zero-shot CLIP as its case without training."""
