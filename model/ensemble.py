"""Several networks that answer as one: the mean of their ages (not in the paper)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.scaledense import ScaleDense
from model.tsan import TSAN


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
