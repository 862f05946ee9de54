"""A network that learns: flags, one training path, augmentation, optimisation, log."""
