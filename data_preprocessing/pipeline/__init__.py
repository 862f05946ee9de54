"""From a raw scan to a brain on the grid of the networks."""
