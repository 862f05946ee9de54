"""A network at rest and in use: checkpoints, device and precision, prediction, sharing."""

BEST_NAME = "ScaleDense_best_model.pth.tar"  # of a run's result, as published
