"""Parts that several methods share: trainable CLIP towers, a temporal transformer, inputs and augmentation."""
