"""The training objective: squared error plus ranking and age-difference losses.

Source: Cheng et al., IEEE TMI 2021, section III-C, equations 5 to 8; the published scripts set
lambda (`rank_weight`) to 10 and beta (`pair_weight`) to 1:

    total = MSE + lambda * (rank + beta * pair)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.sorter import Sorter

ERROR_LOSSES = {"mse": functional.mse_loss, "mae": functional.l1_loss}


def soft_ranks(values: Tensor, tau: float = 2.0) -> Tensor:
    """Differentiable ranks from pairwise sigmoids; any N, no trained weights.

    rank_i = 0.5 + sum over all j, i included, of sigmoid((v_j - v_i) / tau), divided by N.

    Args:
        values: (N,) years.
        tau: years over which a comparison is soft; 1 to 5 keep a gradient for every scan at N = 32.

    Returns:
        (N,) ranks / N, the largest value nearly 1/N, the smallest nearly 1; equal values share
        their average rank.

    Raises:
        ValueError: `tau` is not positive.
    """
    if not tau > 0:
        raise ValueError(f"tau: a positive number of years expected, got {tau}")
    larger = torch.sigmoid((values[None, :] - values[:, None]) / tau)  # (i, j): is j above i?
    return (0.5 + larger.sum(dim=1)) / len(values)


def sodeep_ranks(values: Tensor, sorter: Sorter) -> Tensor:
    """Ranks / N of (N,) years by a trained sorter of length N (Engilberge et al., CVPR 2019).

    The sorter was trained on standardised sequences: fed raw ages of 20 to 90 years it does not
    sort at all (rank correlation -0.11) and hands back gradients of 1e-8.
    """
    return sorter(standardise(values)[None])[0]


def pair_loss(error: Tensor, *, pairs: str = "all") -> Tensor:
    """Squared difference of age differences over pairs of scans (equation 5).

    ((p_i - p_j) - (y_i - y_j))^2 depends on the errors e = p - y alone. Averaged over all pairs it
    is twice their population variance, which costs nothing and has no sampling noise.

    Args:
        error: (N,) predicted minus true years.
        pairs: `all`, or `random`: N pairs drawn with replacement, as the authors do.
    """
    if pairs == "all":
        return 2 * error.var(correction=0)
    first, second = torch.randint(len(error), (2, len(error)), device=error.device)
    return (error[first] - error[second]).square().mean()


class AgeLoss(nn.Module):
    """The objective as a dict of named terms, so that a log needs not know their names.

    Args:
        loss: error of the age itself, `mse` or `mae`.
        aux_loss: what `rank_weight` weighs: `ranking` (rank and pair), or `mse` or `mae` once more.
        rank_weight: lambda; 0 leaves the auxiliary loss out.
        pair_weight: beta; 0 leaves the pairs out.
        pairs: `all` or `random`, see `pair_loss`.
        sorter: a trained sorter, frozen here; None ranks by `soft_ranks`.
        tau: years, for `soft_ranks`.

    Raises:
        ValueError: unknown names or negative weights.
    """

    def __init__(
        self,
        *,
        loss: str = "mse",
        aux_loss: str = "ranking",
        rank_weight: float = 10.0,
        pair_weight: float = 1.0,
        pairs: str = "all",
        sorter: Sorter | None = None,
        tau: float = 2.0,
    ):
        super().__init__()
        for name, value, known in (
            ("loss", loss, ERROR_LOSSES),
            ("aux_loss", aux_loss, ("ranking", *ERROR_LOSSES)),
            ("pairs", pairs, ("all", "random")),
        ):
            if value not in known:
                raise ValueError(f"{name}: one of {', '.join(known)} expected, got {value!r}")
        if rank_weight < 0 or pair_weight < 0:
            raise ValueError(f"weights below 0: rank {rank_weight}, pair {pair_weight}")
        self.loss, self.aux_loss, self.pairs, self.tau = loss, aux_loss, pairs, tau
        self.rank_weight, self.pair_weight = rank_weight, pair_weight
        # Always in train mode: cuDNN refuses the backward pass of a recurrent net in eval mode.
        self.sorter = None if sorter is None else sorter.requires_grad_(False).train()

    def train(self, mode: bool = True) -> "AgeLoss":
        """Keeps the sorter in train mode, in which it computes the same values."""
        super().train(mode)
        if self.sorter is not None:
            self.sorter.train()
        return self

    def forward(self, predicted_age: Tensor, age: Tensor) -> dict[str, Tensor]:
        """Scalars `total` and the terms it is made of, unweighted, from (N, 1) years each."""
        predicted_age, age = predicted_age.reshape(-1), age.reshape(-1)
        terms = {self.loss: ERROR_LOSSES[self.loss](predicted_age, age)}
        total = terms[self.loss]
        if self.rank_weight > 0 and self.aux_loss == "ranking":
            # Equation 8: mean squared difference of soft and true ranks, both divided by N.
            if self.sorter is None:
                ranks = soft_ranks(predicted_age, self.tau)
            else:
                ranks = sodeep_ranks(predicted_age, self.sorter)
            terms["rank"] = functional.mse_loss(ranks, tied_ranks(age).to(ranks.dtype))
            total = total + self.rank_weight * terms["rank"]
            if self.pair_weight > 0:
                terms["pair"] = pair_loss(predicted_age - age, pairs=self.pairs)
                total = total + self.rank_weight * self.pair_weight * terms["pair"]
        elif self.rank_weight > 0:
            terms[f"aux_{self.aux_loss}"] = ERROR_LOSSES[self.aux_loss](predicted_age, age)
            total = total + self.rank_weight * terms[f"aux_{self.aux_loss}"]
        return {"total": total, **terms}


def tied_ranks(values: Tensor) -> Tensor:
    """The true ranks divided by L: the largest value 1/L, the smallest 1, ties averaged.

    Every pair is compared, so memory grows with L squared (4 MB per row at L = 1000). No gradient.

    Args:
        values: (L,) or (B, L), any unit; NaN has no rank and is not looked for.

    Returns:
        The shape of `values`; float64 for float64 values, otherwise float32.

    Raises:
        ValueError: another number of dimensions.
    """
    if values.ndim not in (1, 2):
        raise ValueError(f"(L,) or (batch, L) values expected, got shape {tuple(values.shape)}")
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    values = values.detach()
    own, other = values.unsqueeze(-1), values.unsqueeze(-2)
    larger = (other > own).sum(dim=-1, dtype=dtype)
    equal = (other == own).sum(dim=-1, dtype=dtype)  # counts the value itself
    return (larger + (equal + 1) / 2) / values.shape[-1]


def standardise(values: Tensor, floor: float = 1.0) -> Tensor:
    """(x - mean) / max(SD, floor) along the last dimension; differentiable.

    A sorter ranks only values on the scale it was trained on: raw ages of 20 to 90 years given to
    one made for [-1, 1] ranked at random, with gradients of 1e-8. The floor keeps a batch of nearly
    equal predictions (the start of training, a collapsed network) from being blown up to unit
    spread, where noise would be ranked and gradients would explode.

    Args:
        values: (..., L); half precision is computed in float32.
        floor: the smallest divisor, in the unit of the values (years).

    Raises:
        ValueError: the floor is not positive.
    """
    if not floor > 0:
        raise ValueError(f"floor: a positive number of years expected, got {floor}")
    if values.dtype != torch.float64:
        values = values.float()
    centred = values - values.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    # Clamped before the root, whose slope at zero is infinite: equal values get gradient, not NaN.
    return centred / variance.clamp(min=floor**2).sqrt()
