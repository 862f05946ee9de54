"""The age bias of predicted ages, and both standard corrections.

Networks predict the young too old and the old too young, so brain-PAD depends on age. One straight
line through the ages of unseen healthy scans describes it: predicted = slope * age + intercept.

- Cole: corrected = (predicted - intercept) / slope. Needs no chronological age. Errors grow by
  1 / slope (Cole et al. 2018, doi 10.1038/mp.2017.62; de Lange and Cole 2020,
  doi 10.1016/j.nicl.2020.102229).
- Beheshti: what the line gives for brain-PAD at the chronological age is subtracted (Beheshti et
  al. 2019, doi 10.1016/j.nicl.2019.102063). That line, brain-PAD on age, is the same one with a
  slope that is smaller by 1.

So Beheshti's corrected brain-PAD is `slope` times Cole's: both rank scans in the same order, and
figures that depend on ranks alone, such as an AUC, are the same for both.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress

MINIMUM_SCANS = 20
MINIMUM_SLOPE = 0.1


@dataclass(frozen=True)
class BiasCorrection:
    """The line: `slope` (years per year), `intercept` and the fitted (low, high) ages in years.

    Raises:
        ValueError: not finite, a range upside down, or a slope below MINIMUM_SLOPE, where Cole's
            correction would only magnify noise.
    """

    slope: float
    intercept: float
    age_range: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.age_range
        if not (all(map(math.isfinite, (self.slope, self.intercept, low, high))) and low <= high):
            raise ValueError(f"{self}: finite numbers and an age range from low to high expected")
        if self.slope < MINIMUM_SLOPE:
            raise ValueError(
                f"predicted ages rise by {self.slope:.3f} years per year of age: at least "
                f"{MINIMUM_SLOPE} expected; such a network knows too little of age to be corrected"
            )

    def cole(self, predicted_age: np.ndarray) -> np.ndarray:
        """Corrected ages in years; uses no chronological age."""
        return (predicted_age - self.intercept) / self.slope

    def beheshti(self, predicted_age: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Corrected ages in years; uses the chronological age.

        Because the true age enters the corrected one, MAE and correlation with age look better than
        they are: at slope 0 even a constant would become perfect. For brain-PAD only, never to
        judge a network's accuracy.
        """
        return predicted_age - ((self.slope - 1) * age + self.intercept)

    def outside(self, age: np.ndarray) -> np.ndarray:
        """Which ages lie beyond the fitted range, where the correction extrapolates."""
        low, high = self.age_range
        return (age < low) | (age > high)


def fit_bias_correction(age: np.ndarray, predicted_age: np.ndarray) -> BiasCorrection:
    """The least-squares line of predicted on chronological age.

    Args:
        age: (n,) years of healthy scans.
        predicted_age: (n,) years from networks not trained on them: ages of training scans have
            less bias than those of new ones.

    Raises:
        ValueError: fewer than MINIMUM_SCANS, one age only, or a slope below MINIMUM_SLOPE.
    """
    if len(age) < MINIMUM_SCANS:
        raise ValueError(f"{len(age)} scans: at least {MINIMUM_SCANS} expected to fit an age bias")
    if np.ptp(age) == 0:
        raise ValueError(f"all scans are {age[0]:g} years old: several ages expected")
    line = linregress(age, predicted_age)
    return BiasCorrection(
        float(line.slope), float(line.intercept), (float(age.min()), float(age.max()))
    )
