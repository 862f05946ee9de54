"""Trains a SoDeep sorter on synthetic sequences, measures it on fresh ones, writes it.

After Engilberge et al., CVPR 2019: the sorter is fitted with L1 to the true ranks of
drawn sequences. Two deviations: the sequences are drawn in years and standardised as the ranking
loss standardises its batch, so the sorter meets in use what it met in training; and sequences with
ties and tight clusters are among them, because whole ages tie and early predictions cluster.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from model.losses import standardise, tied_ranks
from model.sorter import Sorter, load_sorter, save_sorter
from utils.files import replacing, require_absent, require_fetched, require_writable
from utils.networks.execution import choose_execution

PRETRAINED = Path(__file__).resolve().parents[2] / "pretrained"

WARM_UP = 0.05  # share of the steps; the first steps at the full rate upset an LSTM
LARGEST_GRADIENT = 1.0
CHECK_EVERY = 100  # steps between two readings of the loss, which make a GPU wait
EVALUATION_SEQUENCES = 2000  # of each family
GRADIENT_SEQUENCES = 50  # of each family; the derivative costs L backward passes
DESCENT_ROWS = 64
DESCENT_STEPS = 100
EVALUATION_SEED = 20210603  # the same fresh sequences for every sorter of one length


@dataclass(frozen=True)
class SorterRecipe:
    """All that decides a sorter: the same recipe on the same machine gives the same file."""

    kind: str  # lstm or lstmla
    length: int  # values sorted at once: the global batch of the network that it will train
    steps: int
    batch_size: int = 64  # sequences per step
    lr: float = 5e-3  # the highest of the schedule
    seed: int = 0

    @property
    def command(self) -> str:
        """The command that trains this recipe, whatever the defaults become."""
        return (
            f"bash script/train_sorter.sh --kind {self.kind} --length {self.length} "
            f"--steps {self.steps} --batch_size {self.batch_size} --lr {self.lr!r} "
            f"--seed {self.seed}"
        )


def sorter_path(length: int, kind: str = "lstm") -> Path:
    """Where the repository keeps the sorter of this length."""
    return PRETRAINED / f"sorter_{kind}_{length}.pt"


def load_shipped_sorter(length: int) -> Sorter:
    """The sorter in `pretrained/` for batches of `length` scans, see `load_sorter`.

    Raises:
        FileNotFoundError: there is none; the message says which command makes it.
    """
    path = sorter_path(length)
    require_fetched(path)
    if not path.is_file():
        found = sorted(int(other.stem.split("_")[-1]) for other in PRETRAINED.glob("sorter_lstm_*"))
        raise FileNotFoundError(
            f"{path}: no sorter for a batch of {length} scans (lengths present: "
            f"{', '.join(map(str, found)) or 'none'}); make it with "
            f"`bash script/train_sorter.sh --kind lstm --length {length}`"
        )
    return load_sorter(path)


def default_steps(length: int) -> int:
    """Training steps for a sorter of this length: 1500 for every 8 values.

    More is not better for short sequences. L1 rewards a staircase, whose ranks are nearly exact and
    whose slope is nearly zero: with 6000 steps a sorter of 8 values halved its error and could no
    longer sort predictions by its gradient (pretrained/README.md has the numbers).
    """
    return round(1500 * length / 8)


def uniform_sequences(count: int, length: int, generator: Generator) -> Tensor:
    """(count, length) years, even within a row's own range, 2 to 75 years wide."""
    width = _between(2, 75, count, generator)
    return _centre(count, generator) + width * (_rand(count, length, generator) - 0.5)


def normal_sequences(count: int, length: int, generator: Generator) -> Tensor:
    """(count, length) years, normal around a row's own centre with an SD of 1 to 25 years."""
    spread = _log_between(1, 25, count, generator)
    return _centre(count, generator) + spread * _randn(count, length, generator)


def ramp_sequences(count: int, length: int, generator: Generator) -> Tensor:
    """(count, length) years, rising or falling by 5 to 75 years, with noise of up to 30% of it."""
    rise = _between(5, 75, count, generator)
    rise = rise * torch.where(_rand(count, 1, generator) < 0.5, -1.0, 1.0)
    noise = _between(0, 0.3, count, generator) * _randn(count, length, generator)
    return _centre(count, generator) + rise * (torch.linspace(-0.5, 0.5, length) + noise)


def mixed_sequences(count: int, length: int, generator: Generator) -> Tensor:
    """(count, length) years, each value from a uniform, a normal or a ramp sequence."""
    parts = [
        draw(count, length, generator)
        for draw in (uniform_sequences, normal_sequences, ramp_sequences)
    ]
    choice = torch.randint(len(parts), (count, length), generator=generator)
    return torch.stack(parts, dim=-1).gather(-1, choice.unsqueeze(-1)).squeeze(-1)


def age_sequences(count: int, length: int, generator: Generator) -> Tensor:
    """(count, length) whole years of 18 to 95: young and old volunteers, shares differ by row.

    Rounded as in most label sheets, so equal ages are common.
    """
    young = 27 + 7 * _randn(count, length, generator)
    old = 72 + 9 * _randn(count, length, generator)
    between = 18 + 77 * _rand(count, length, generator)
    kind = _rand(count, length, generator)
    even_share = _rand(count, 1, generator)
    young_share = even_share + (1 - even_share) * _rand(count, 1, generator)
    ages = torch.where(kind < even_share, between, torch.where(kind < young_share, young, old))
    return ages.clamp(18, 95).round()


def cluster_sequences(count: int, length: int, generator: Generator) -> Tensor:
    """(count, length) years, tight around one or two values: what a network predicts early.

    The spread of 0.2 to 3 years falls below the floor of `standardise` for about half of the rows.
    These then have less than unit spread, as they have in use.
    """
    spread = _log_between(0.2, 3, count, generator)
    distance = spread * _between(0, 6, count, generator)
    second = _rand(count, length, generator) < _rand(count, 1, generator)
    values = spread * _randn(count, length, generator) + distance * second
    return _centre(count, generator) + values


FAMILIES: dict[str, Callable[[int, int, Generator], Tensor]] = {
    "uniform": uniform_sequences,
    "normal": normal_sequences,
    "ramps": ramp_sequences,
    "mixed": mixed_sequences,
    "ages 18-95 with ties": age_sequences,
    "tight clusters": cluster_sequences,
}


def training_sequences(count: int, length: int, generator: Generator) -> Tensor:
    """(count, length) standardised values, all families in equal shares."""
    each = math.ceil(count / len(FAMILIES))
    years = torch.cat([draw(each, length, generator) for draw in FAMILIES.values()])
    # Chosen at random, so that no family is always the one cut short.
    chosen = torch.randperm(len(years), generator=generator)[:count]
    return standardise(years[chosen])


def new_sorter(kind: str, length: int, *, seed: int) -> Sorter:
    """A sorter with torch's usual initial weights, drawn without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Sorter(kind, length)


def train_sorter(recipe: SorterRecipe, *, device: torch.device) -> Sorter:
    """Fits a new sorter with L1 on tied ranks: Adam, a linear warm-up, then a cosine to zero.

    Raises:
        ValueError: an unknown kind, a length out of range, or a loss that is no longer finite.
    """
    sorter = new_sorter(recipe.kind, recipe.length, seed=recipe.seed).to(device)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.Adam(sorter.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_share(step, recipe.steps)
    )
    progress = tqdm(range(1, recipe.steps + 1), desc="sorter", unit="step", disable=None)
    for step in progress:
        values = training_sequences(recipe.batch_size, recipe.length, generator).to(device)
        loss = (sorter(values) - tied_ranks(values)).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sorter.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0 or step == recipe.steps:
            if not math.isfinite(loss.item()):
                raise ValueError(
                    f"the loss is {loss.item()} at step {step}: a learning rate below "
                    f"{recipe.lr:g} is needed"
                )
            progress.set_postfix(rank_error=f"{loss.item() * recipe.length:.3f}")
    return sorter


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the highest learning rate at `step` (counted from 0): up a line, down a cosine."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def evaluate_sorter(sorter: Sorter) -> dict:
    """Measures a sorter on sequences that no training draws.

    Returns:
        `families`: the numbers of `measure` for every family, by its name in FAMILIES;
        `descent_correlation`: that of `descent_correlation`.
    """
    device = next(sorter.parameters()).device
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    families = {}
    for family, draw in FAMILIES.items():
        years = draw(EVALUATION_SEQUENCES, sorter.length, generator)
        families[family] = measure(sorter, standardise(years).to(device))
    return {
        "families": families,
        "descent_correlation": descent_correlation(sorter, generator=generator),
    }


def measure(sorter: Sorter, values: Tensor) -> dict[str, float]:
    """Error, rank correlation and gradient sign of a sorter on (B, L) standardised values.

    Returns:
        `rank_error`: mean absolute error in places, and `rank_error_share`: the same divided by L;
        `rank_correlation`: Spearman's, tied ranks, mean over the rows whose values are not all
        equal; `falling_share`: share of values whose rank falls, as it should, when they alone rise
        (the sign of the derivative of each rank by its own value).
    """
    with torch.inference_mode():
        predicted = sorter(values)
    error = (predicted - tied_ranks(values)).abs().mean().item()
    own = own_derivatives(sorter, values[:GRADIENT_SEQUENCES])
    return {
        "rank_error": error * sorter.length,
        "rank_error_share": error,
        "rank_correlation": rank_correlation(predicted, values),
        "falling_share": (own < 0).double().mean().item(),
    }


def rank_correlation(predicted: Tensor, values: Tensor) -> float:
    """Mean Spearman correlation of predicted ranks with the true ones, both (B, L).

    Rows whose values are all equal have no ranking and are left out; a row of equal predictions
    counts as zero, because it ranks nothing.
    """
    # The largest value has the smallest rank.
    first, second = tied_ranks(predicted.double()), tied_ranks(-values.double())
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    scale = first.norm(dim=1) * second.norm(dim=1)
    correlation = (first * second).sum(dim=1) / scale.clamp(min=torch.finfo(torch.float64).tiny)
    return correlation[second.norm(dim=1) > 0].mean().item()


def own_derivatives(sorter: Sorter, values: Tensor) -> Tensor:
    """The derivative of each rank by its own value, (B, L) for (B, L) values.

    On a GPU the sorter must be in train mode (see Sorter).
    """
    values = values.detach().clone().requires_grad_()
    ranks = sorter(values)
    columns = [
        torch.autograd.grad(ranks[:, i].sum(), values, retain_graph=True)[0][:, i]
        for i in range(sorter.length)
    ]
    return torch.stack(columns, dim=1)


def descent_correlation(sorter: Sorter, *, generator: Generator) -> float:
    """How well the sorter's gradient alone sorts predictions, which a ranking loss needs.

    Predictions around 50 years, unrelated to the true ages of 18 to 95, take 100 steps of Adam
    (1 year each) down the squared difference between their ranks by the sorter and the true ranks.

    Returns:
        The Spearman correlation of the predictions with the ages in the end, mean over 64 rows;
        about 0 at the start, 1 is the best.
    """
    device = next(sorter.parameters()).device
    shape = (DESCENT_ROWS, sorter.length)
    ages = (18 + 77 * _rand(*shape, generator)).to(device)
    predicted = (50 + 5 * _randn(*shape, generator)).to(device).requires_grad_()
    optimizer = torch.optim.Adam([predicted], lr=1.0)
    target = tied_ranks(ages)
    for _ in range(DESCENT_STEPS):
        loss = (sorter(standardise(predicted)) - target).square().sum()
        # Not backward(): the sorter's own weights need no gradients here.
        (predicted.grad,) = torch.autograd.grad(loss, [predicted])
        optimizer.step()
    return rank_correlation(tied_ranks(predicted), ages)


def make_sorter(
    recipe: SorterRecipe,
    *,
    device: str = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
) -> dict:
    """Trains, measures and writes one sorter.

    Args:
        recipe: what to train.
        device: where to train: auto, cpu or cuda.
        output: the file to write; without it the one in `pretrained/` that the loss looks for.
        overwrite: whether it may exist already.

    Returns:
        The measures of `evaluate_sorter`, of the weights as they were written.

    Raises:
        FileExistsError: the file exists and `overwrite` is false; found before training.
        OSError: the file cannot be written there; found before training too.
        ValueError: as `train_sorter`; or the GPU that `device` names is not there.
    """
    output = Path(output) if output else sorter_path(recipe.length, recipe.kind)
    device = choose_execution(device, "float32").device
    _require_writable(output, overwrite=overwrite)
    steps = f"{recipe.steps} steps of {recipe.batch_size} sequences on {device}"
    print(f"{recipe.kind} sorter of {recipe.length} values: {steps}", flush=True)
    start = time.perf_counter()
    sorter = train_sorter(recipe, device=device)
    seconds = time.perf_counter() - start
    sorter = sorter.half().float()  # as it will be read back
    metrics = evaluate_sorter(sorter)
    with replacing(output, overwrite=overwrite) as temporary:
        save_sorter(sorter, temporary, metrics=metrics, command=recipe.command)
    print(metrics_table(metrics))
    print(f"trained in {seconds:.0f} s, written to {output}")
    return metrics


def metrics_table(metrics: dict) -> str:
    """The measures of `evaluate_sorter` as aligned lines, one per family."""
    lines = [
        f"{'fresh sequences':<22}{'rank error':>11}{'error / L':>11}"
        f"{'rank correlation':>18}{'falling share':>15}"
    ]
    lines += [
        f"{family:<22}{row['rank_error']:>11.4f}{row['rank_error_share']:>11.5f}"
        f"{row['rank_correlation']:>18.5f}{row['falling_share']:>15.4f}"
        for family, row in metrics["families"].items()
    ]
    lines.append(
        "predictions moved by its gradient alone end with rank correlation "
        f"{metrics['descent_correlation']:.4f}"
    )
    return "\n".join(lines)


def _require_writable(output: Path, *, overwrite: bool) -> None:
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder: --output names the file to write")
    if not overwrite:
        require_absent(output)
    require_writable(output.parent)


def _rand(count: int, length: int, generator: Generator) -> Tensor:
    return torch.rand(count, length, generator=generator)


def _randn(count: int, length: int, generator: Generator) -> Tensor:
    return torch.randn(count, length, generator=generator)


def _centre(count: int, generator: Generator) -> Tensor:
    return _between(20, 80, count, generator)


def _between(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return low + (high - low) * _rand(count, 1, generator)


def _log_between(low: float, high: float, count: int, generator: Generator) -> Tensor:
    return _between(math.log(low), math.log(high), count, generator).exp()
