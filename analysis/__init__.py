"""What is made of predicted ages: brain-PAD, its correction and limits, and saliency."""
