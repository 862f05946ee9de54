"""The second stage and the cascade of both (Cheng et al., IEEE TMI 2021, section III-A, figure 1).

The first stage gives a rough age, which is rounded to a multiple of 5 years; the second stage sees
the scan and the rounded age and predicts what is missing to the age. Since
(rounded + residual) - age = residual - (age - rounded), training the cascade's age with the loss of
the first stage trains the published residual: both stages share one interface and one loop.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.layers import initialise
from model.scaledense import WIDTHS, Encoder, ScaleDense, full_precision, fully_connected

AGE_FEATURES = 16


def discretize_age(age: Tensor, step: float = 5.0) -> Tensor:
    """Rounds ages to the nearest multiple of `step`, halves upward (TMI 2021, section III-A).

    Args:
        age: (N, 1) years.
        step: years, positive.

    Returns:
        (N, 1) years, without gradient.

    Raises:
        ValueError: `step` is not positive.
    """
    if not step > 0:
        raise ValueError(f"step: a positive number of years expected, got {step}")
    return torch.floor(age.detach() / step + 0.5) * step


class SecondStage(nn.Module):
    """Scan, sex and rounded age to the residual, in years, that is added to the rounded age."""

    def __init__(self, width: str = "compact", *, use_sex: bool = True):
        super().__init__()
        self.encoder = Encoder(width, use_sex=use_sex)
        activation = WIDTHS[width].age_activation
        self.age_branch = fully_connected((1, 32, AGE_FEATURES), activation, activation)
        sizes = (self.encoder.out_features + AGE_FEATURES, 16, 1)
        self.head = fully_connected(sizes, WIDTHS[width].between_layers, None)
        initialise(self)

    def forward(self, image: Tensor, sex: Tensor, rounded_age: Tensor) -> Tensor:
        """(N, 1, D, H, W), (N,) sexes, (N, 1) years -> (N, 1) residual years."""
        features = self.encoder(image, sex)
        with full_precision(image):
            age_features = self.age_branch(rounded_age.to(features.dtype))  # (N, 16)
            return self.head(torch.cat([features, age_features], dim=1))

    def start_from(self, network: ScaleDense, *, rough_share: float = 0.0) -> None:
        """Starts at the mean of the rounded age and of the age that another network gives.

        Not in the paper: weights at random first learn to repeat the rounded age, as its scan tells
        them nothing yet, and then stay there: one residual per 5-year bin. The encoder and the head
        are copied; one of the 16 hidden units of the head, that of the least weight, is given up to
        carry the rounded age.

        Args:
            network: fresh, or trained.
            rough_share: the weight of the rounded age, in [0, 1).

        Raises:
            ValueError: `rough_share` is out of range, or the network has another width or another
                use of the sex.
        """
        if not 0 <= rough_share < 1:
            raise ValueError(f"rough_share: at least 0 and below 1 expected, got {rough_share}")
        ours, theirs = self.encoder, network.encoder
        if (ours.width, ours.use_sex) != (theirs.width, theirs.use_sex):
            raise ValueError(
                f"a second stage of width {ours.width}, use_sex {ours.use_sex} cannot start from a "
                f"network of width {theirs.width}, use_sex {theirs.use_sex}: make them equal"
            )
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            self._copy_head(network.head, 1 - rough_share)

    def _copy_head(self, head: nn.Sequential, share: float) -> None:
        """Makes the output `share` of the age of `head` minus the rounded age, for ages >= 0."""
        unit = 10.0  # years; keeps weights and features of the new path near 1
        image_features = self.encoder.out_features
        first, last = self.head[0], self.head[-1]
        first.weight.zero_()
        first.weight[:, :image_features] = head[0].weight
        first.bias.copy_(head[0].bias)
        last.load_state_dict(head[-1].state_dict())
        least = (head[-1].weight[0].abs() * head[0].weight.norm(dim=1)).argmin()
        # rounded age -> feature 0 of the age branch -> this hidden unit -> output
        into, through = self.age_branch[0], self.age_branch[2]
        into.weight[0, 0], into.bias[0] = 1 / unit, 0.0
        through.weight[0], through.bias[0] = 0.0, 0.0
        through.weight[0, 0] = 1.0
        first.weight[least], first.bias[least] = 0.0, 0.0
        first.weight[least, image_features] = 1.0
        last.weight[0, least] = -unit
        last.weight.mul_(share)
        last.bias.mul_(share)


class TSAN(nn.Module):
    """A frozen first stage and a second stage behind one `forward(image, sex) -> ages`.

    Args:
        first_stage: never changes: no gradient, and always in evaluation mode.
        second_stage: what training changes.
        age_step: years between the rounded ages.
        rough_age_noise: SD, in years, of noise on the rough age while training. Not in the paper:
            a first stage is far better on its own training scans than on new ones, so without it
            the second stage never sees the errors it is to mend.
    """

    def __init__(
        self,
        first_stage: ScaleDense,
        second_stage: SecondStage,
        *,
        age_step: float = 5.0,
        rough_age_noise: float = 0.0,
    ):
        super().__init__()
        self.first_stage = first_stage.requires_grad_(False).eval()
        self.second_stage = second_stage
        self.age_step, self.rough_age_noise = age_step, rough_age_noise

    def train(self, mode: bool = True) -> "TSAN":
        """Sets the mode of the second stage; the first stays in evaluation mode."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def predict(self, image: Tensor, sex: Tensor) -> dict[str, Tensor]:
        """The named (N, 1) ages, in years, of one pass through both stages.

        Args:
            image: (N, 1, D, H, W).
            sex: (N,), 0 female or 1 male.
        """
        with torch.no_grad():
            rough_age = stage_one_age = self.first_stage(image, sex)
        if self.training and self.rough_age_noise > 0:
            rough_age = rough_age + self.rough_age_noise * torch.randn_like(rough_age)
        rounded_age = discretize_age(rough_age, self.age_step)
        residual = self.second_stage(image, sex, rounded_age)
        return {
            "stage_one_age": stage_one_age,
            "rounded_age": rounded_age,
            "predicted_age": rounded_age + residual,
        }

    def forward(self, image: Tensor, sex: Tensor) -> Tensor:
        """(N, 1, D, H, W) and (N,) sexes, 0 female or 1 male -> (N, 1) ages; see `predict`."""
        return self.predict(image, sex)["predicted_age"]

    def options(self) -> dict:
        """The arguments that rebuild this network, as plain values."""
        encoder = self.second_stage.encoder
        return {
            "first_stage": self.first_stage.options(),
            "second_stage": {"width": encoder.width, "use_sex": encoder.use_sex},
            "age_step": self.age_step,
        }


class Ensemble(nn.Module):
    """Networks of one stage behind the interface of one; each age is the mean of theirs.

    Raises:
        ValueError: no network, or networks of both stages.
    """

    def __init__(self, members: Sequence[ScaleDense | TSAN]):
        super().__init__()
        if len({type(member) for member in members}) != 1:
            raise ValueError("networks of one stage expected in an ensemble, at least one")
        self.members = nn.ModuleList(members)

    def predict(self, image: Tensor, sex: Tensor) -> dict[str, Tensor]:
        """The named (N, 1) ages in years, (N, 1, D, H, W) scans and (N,) sexes given."""
        found = [member.predict(image, sex) for member in self.members]
        return {name: torch.stack([ages[name] for ages in found]).mean(dim=0) for name in found[0]}

    def forward(self, image: Tensor, sex: Tensor) -> Tensor:
        """As `predict`; the age alone."""
        return self.predict(image, sex)["predicted_age"]
