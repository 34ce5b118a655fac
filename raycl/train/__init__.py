"""Training on Ray: driver, worker loop, optimizers, checkpoints and observers."""
