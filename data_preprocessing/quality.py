"""Whether a scan landed on the template: numbers, and the limits below which it is flagged."""

import numpy as np

from data_preprocessing.template import Template

# Set from the scans of README.md beside this file: good ones lie well above.
LIMITS = {
    "deformable": {"correlation": 0.70, "overlap": 0.90},
    "affine": {"correlation": 0.50, "overlap": 0.85},
}


def correlation(volume: np.ndarray, template: Template) -> float:
    """Pearson correlation with the template inside its mask; 0 where the volume is constant."""
    ours, theirs = volume[template.mask], template.brain[template.mask]
    return float(np.corrcoef(ours, theirs)[0, 1]) if ours.std() > 0 else 0.0


def overlap(brain: np.ndarray, template: Template) -> float:
    """Dice coefficient of two brain masks, 0 to 1."""
    both = brain.sum() + template.mask.sum()
    return float(2 * (brain & template.mask).sum() / both)
