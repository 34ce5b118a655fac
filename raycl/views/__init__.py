"""Augmentations: what a view of a sample looks like, drawn from keyed randomness."""
