"""Private training: per-user gradients, clipped and summed, and the optimizer."""
