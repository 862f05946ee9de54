"""The SoDeep sorter: true ranks, the network, its files, the shipped ones, and its training."""

import argparse
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from test_structure import parse_call, recorded_calls

import train_sorter
from model.losses import standardise, tied_ranks
from model.sorter import HIDDEN_SIZES, Sorter, load_sorter, save_sorter
from utils.training import sorter as sorter_training
from utils.training.sorter import (
    FAMILIES,
    SorterRecipe,
    default_steps,
    learning_rate_share,
    load_shipped_sorter,
    measure,
    new_sorter,
    own_derivatives,
    rank_correlation,
    sorter_path,
    training_sequences,
)

ROOT = Path(__file__).resolve().parents[1]
SHIPPED_LENGTHS = (8, 16, 32)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def small_sorter():
    return new_sorter("lstm", 4, seed=1)


def reference_ranks(values):
    """Independent of the code under test: scipy's average ranks of the negated values."""
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    return np.stack([rankdata(-row, method="average") / len(row) for row in values])


# --- true ranks and standardising


@pytest.mark.parametrize("length", [1, 2, 7, 100])
@pytest.mark.parametrize("decimals", [0, 6])
def test_tied_ranks_are_those_of_scipy(length, decimals, generator):
    values = 3 * torch.randn(9, length, generator=generator, dtype=torch.float64)
    values = values.round(decimals=decimals)
    np.testing.assert_allclose(tied_ranks(values), reference_ranks(values), atol=1e-15)
    assert torch.equal(tied_ranks(values[2]), tied_ranks(values)[2])  # one row, without a batch


def test_tied_ranks_of_a_small_example_by_hand_have_no_gradient():
    ranks = tied_ranks(torch.tensor([30.0, 70.0, 30.0, 20.0], requires_grad=True))
    assert ranks.tolist() == [0.625, 0.25, 0.625, 1.0]
    assert not ranks.requires_grad


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float32])
def test_tied_ranks_of_any_number_type_are_float32(dtype):
    ranks = tied_ranks(torch.arange(7).to(dtype))
    assert ranks.dtype == torch.float32
    np.testing.assert_allclose(ranks, np.arange(7, 0, -1) / 7, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (2, 3, 4)])
def test_tied_ranks_refuse_other_shapes(shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        tied_ranks(torch.zeros(shape))


def test_standardised_values_have_mean_zero_and_unit_spread_or_less_below_the_floor(generator):
    ages = 18 + 77 * torch.rand(3, 5, 32, generator=generator, dtype=torch.float64)
    result = standardise(ages)
    np.testing.assert_allclose(result.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(result.std(-1, unbiased=False), 1, rtol=1e-12)
    close = torch.tensor([50.0, 50.2, 50.4], dtype=torch.float64)
    np.testing.assert_allclose(standardise(close, floor=2.0), [-0.1, 0.0, 0.1], atol=1e-12)
    for floor in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="floor: a positive number"):
            standardise(ages, floor=floor)


def test_equal_values_are_standardised_with_finite_gradients():
    values = torch.full((2, 4), 60.0, requires_grad=True)
    result = standardise(values)
    result[:, 0].sum().backward()
    assert torch.equal(result, torch.zeros(2, 4))
    np.testing.assert_allclose(values.grad[0], [0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize("spread", [0.1, 10.0])
def test_standardising_has_the_right_derivative(spread, generator):
    values = spread * torch.randn(2, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(standardise, values.requires_grad_())


def test_half_precision_is_standardised_in_float32():
    values = torch.linspace(1000, 2000, 32).half()
    assert standardise(values).dtype == torch.float32
    assert torch.equal(standardise(values), standardise(values.float()))


# --- the network


@pytest.mark.parametrize(
    ("kind", "length", "batch"), [("lstm", 2, 1), ("lstm", 9, 3), ("lstmla", 4, 2)]
)
def test_a_sorter_gives_one_rank_for_each_value(kind, length, batch):
    assert new_sorter(kind, length, seed=0)(torch.zeros(batch, length)).shape == (batch, length)


def test_parameters_have_the_names_and_shapes_of_the_authors():
    weights = new_sorter("lstm", 6, seed=0).state_dict()
    assert {name.split(".")[0] for name in weights} == {"lstm", "conv1"}
    assert weights["lstm.weight_ih_l0"].shape == (4 * 128, 1)
    assert weights["lstm.weight_hh_l1_reverse"].shape == (4 * 128, 128)
    assert weights["conv1.weight"].shape == (6, 6, 256)
    assert len(weights) == 2 * 2 * 4 + 2


@pytest.mark.parametrize("shape", [(4,), (2, 5), (2, 4, 1)])
def test_a_batch_of_another_length_is_refused(shape, small_sorter):
    message = r"\(batch, 4\) values, got shape " + re.escape(str(shape))
    with pytest.raises(ValueError, match=message):
        small_sorter(torch.zeros(shape))


@pytest.mark.parametrize(("kind", "length"), [("gru", 8), ("lstm", 1), ("lstm", 10**6)])
def test_an_impossible_sorter_is_refused(kind, length):
    with pytest.raises(ValueError, match="expected, got"):
        Sorter(kind, length)


def test_ranks_are_the_same_in_both_modes_and_keep_full_precision_under_autocast(
    small_sorter, generator
):
    values = torch.randn(3, 4, generator=generator)
    expected = small_sorter.train()(values)
    assert torch.equal(small_sorter.eval()(values), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ranks = small_sorter(values)
    assert ranks.dtype == torch.float32
    assert torch.equal(ranks, expected)


# --- files


def authors_file(path, *, prefix="", **changes):
    sorter = new_sorter("lstm", 4, seed=1)
    content = {
        "state_dict": {prefix + name: value for name, value in sorter.state_dict().items()},
        "args_dict": argparse.Namespace(model_type="lstm", seq_len=4, lr=1e-3),
        "epoch": 3,
    }
    content.update(changes)
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return sorter


@pytest.fixture
def saved(tmp_path, small_sorter):
    path = tmp_path / "s.pt"
    save_sorter(small_sorter, path, metrics={"a": {"b": 1.5}}, command="make it")
    return path


def test_a_written_sorter_is_read_back_to_half_precision(saved, small_sorter, generator):
    values, before = torch.randn(6, 4, generator=generator), torch.get_rng_state()
    loaded = load_sorter(saved)
    assert torch.equal(torch.get_rng_state(), before)  # draws no random numbers
    assert (loaded.kind, loaded.length) == ("lstm", 4)
    for name, value in small_sorter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    np.testing.assert_allclose(loaded(values), small_sorter(values).detach(), atol=2e-3)


def test_a_sorter_file_holds_plain_half_precision_content_whatever_its_name(saved, small_sorter):
    content = torch.load(saved, weights_only=True)
    assert {value.dtype for value in content["state_dict"].values()} == {torch.float16}
    assert (content["metrics"], content["command"]) == ({"a": {"b": 1.5}}, "make it")
    other = saved.with_name(".part-12-two.pt")
    save_sorter(small_sorter, other, metrics={"a": {"b": 1.5}}, command="make it")
    assert other.read_bytes() == saved.read_bytes()


def test_a_loaded_sorter_is_frozen_in_float32_and_passes_gradients_on(saved):
    values = torch.randn(2, 4, requires_grad=True)
    loaded = load_sorter(saved)
    loaded(values).square().sum().backward()
    assert not loaded.training
    assert all(not p.requires_grad and p.grad is None for p in loaded.parameters())
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert (values.grad != 0).all()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_in_the_authors_format_gives_the_same_ranks(prefix, tmp_path, generator):
    sorter = authors_file(tmp_path / "authors.pth.tar", prefix=prefix)
    values = torch.randn(5, 4, generator=generator)
    assert torch.equal(load_sorter(tmp_path / "authors.pth.tar")(values), sorter(values))
    # The class that their format needs is allowed for this one reading alone.
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def changed_weights(**changes):
    weights = new_sorter("lstm", 4, seed=1).state_dict() | changes
    return {"state_dict": {name: value for name, value in weights.items() if value is not None}}


def changed_arguments(**arguments):
    return {"args_dict": argparse.Namespace(**arguments)}


BIAS = "conv1.bias"
BAD_CONTENTS = {
    "no state dict": ({"state_dict": None}, "a dict with a `state_dict`"),
    "no arguments": ({"args_dict": None}, "neither `format`"),
    "another format": ({"format": "other", "args_dict": {"seq_len": 4}}, "neither `format`"),
    "unknown kind": (changed_arguments(model_type="gru", seq_len=4), "got 'gru'"),
    "no kind": (changed_arguments(seq_len=4), "got 'None'"),
    "huge": (changed_arguments(model_type="lstm", seq_len=10**12), "from 2 to 4096"),
    "not a length": (changed_arguments(model_type="lstm", seq_len=True), "got 'True'"),
    "wrong length": (
        changed_arguments(model_type="lstm", seq_len=5),
        r"conv1.weight is \(4, 4, 256\), \(5, 5, 256\) expected",
    ),
    "wrong kind": (changed_arguments(model_type="lstmla", seq_len=4), "lstm.weight_ih_l0 is"),
    "missing weight": (changed_weights(**{BIAS: None}), "conv1.bias is missing"),
    "extra weight": (changed_weights(more=torch.zeros(1)), "more is unknown"),
    "not finite": (
        changed_weights(**{BIAS: torch.full((4,), torch.nan)}),
        "conv1.bias does not hold finite",
    ),
    "integers": (
        changed_weights(**{BIAS: torch.ones(4, dtype=torch.int64)}),
        "conv1.bias does not hold finite floating-point",
    ),
    "not a tensor": (changed_weights(**{BIAS: 3.0}), "not a dense tensor"),
}


@pytest.mark.parametrize("case", BAD_CONTENTS)
def test_a_file_with_wrong_content_is_refused_by_name(case, tmp_path):
    changes, message = BAD_CONTENTS[case]
    authors_file(tmp_path / "bad.pt", **changes)
    with pytest.raises(ValueError, match=rf"bad\.pt: .*{message}"):
        load_sorter(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    "content", [b"", b"an age sheet, not a sorter", b"PK\x03\x04" + b"\0" * 99, 0.1, 0.5, 0.99]
)
def test_a_file_that_is_no_torch_file_or_is_cut_is_refused_by_name(content, saved):
    if isinstance(content, float):  # the share that is left of a good file
        content = saved.read_bytes()[: int(content * saved.stat().st_size)]
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.pt: not a sorter file"):
        load_sorter(saved)


def test_a_missing_file_is_named_and_of_the_shipped_ones_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such sorter"):
        load_sorter(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError) as caught:
        load_shipped_sorter(7)
    assert "bash script/train_sorter.sh --kind lstm --length 7" in str(caught.value)
    assert "lengths present: 8, 16, 32" in str(caught.value)


# --- the shipped sorters


@pytest.fixture(scope="module", params=SHIPPED_LENGTHS)
def shipped(request):
    return load_shipped_sorter(request.param)


@pytest.mark.parametrize("whole_years", [False, True])
def test_shipped_sorters_rank_standardised_ages(shipped, whole_years):
    ages = np.random.default_rng(3).uniform(18, 95, size=(300, shipped.length))
    ages = ages.round() if whole_years else ages
    with torch.inference_mode():
        ranks = shipped(standardise(torch.from_numpy(ages))).numpy()
    correlations = [spearmanr(r, -a).statistic for r, a in zip(ranks, ages, strict=True)]
    assert np.mean(correlations) >= 0.98
    assert np.abs(ranks - reference_ranks(ages)).mean() < 0.05


def test_ranks_of_shipped_sorters_fall_when_their_value_rises_and_do_not_depend_on_its_place(
    shipped, generator
):
    draw = FAMILIES["ages 18-95 with ties"]
    ages = standardise(draw(100, shipped.length, generator))
    order = torch.randperm(shipped.length, generator=generator)
    with torch.inference_mode():
        moved, ranks = shipped(ages[:, order]), shipped(ages)[:, order]
    assert (moved - ranks).abs().mean() < 0.05
    assert (own_derivatives(shipped, ages[:16]) < 0).double().mean() > 0.85


@pytest.mark.slow
def test_the_gradient_of_a_shipped_sorter_alone_sorts_predictions(shipped, generator, monkeypatch):
    monkeypatch.setattr(sorter_training, "DESCENT_STEPS", 100)
    monkeypatch.setattr(sorter_training, "DESCENT_ROWS", 16)
    assert sorter_training.descent_correlation(shipped, generator=generator) > 0.8


def test_the_gradient_of_an_untrained_sorter_does_not_sort_predictions(small_sorter, monkeypatch):
    monkeypatch.setattr(sorter_training, "DESCENT_STEPS", 30)
    assert sorter_training.descent_correlation(small_sorter, generator=torch.Generator()) < 0.5


@pytest.mark.parametrize("length", SHIPPED_LENGTHS)
def test_shipped_files_are_small_and_listed_with_their_checksums_and_recipes(length):
    path, readme = sorter_path(length), (ROOT / "pretrained" / "README.md").read_text()
    command = torch.load(path, weights_only=True)["command"]
    assert path.stat().st_size < 4e6
    assert hashlib.sha256(path.read_bytes()).hexdigest() in readme
    assert command in readme
    assert command.split()[:2] == ["bash", "script/train_sorter.sh"]
    options = train_sorter.build_parser().parse_args(command.split()[2:])
    assert (options.kind, options.length) == ("lstm", length)
    assert options.steps == default_steps(length)


# --- sequences and training


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [2, 5, 32])
def test_every_family_draws_finite_rows_that_a_seed_repeats(family, length):
    first, again, other = (
        FAMILIES[family](50, length, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (50, length)
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ages_are_whole_years_of_the_adult_range_with_ties(generator):
    ages = FAMILIES["ages 18-95 with ties"](200, 32, generator)
    assert torch.equal(ages, ages.round())
    assert (ages.min(), ages.max()) == (18, 95)
    assert min(len(row.unique()) for row in ages) < 32


def test_training_sequences_have_unit_spread_but_for_tight_clusters(generator):
    spread = training_sequences(600, 16, generator).std(dim=1, unbiased=False)
    assert spread.max() < 1.001
    assert 0.85 < (spread > 0.999).double().mean() < 0.97
    for count in (1, 5, 64):
        assert training_sequences(count, 6, generator).shape == (count, 6)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_the_learning_rate_rises_to_its_highest_and_falls(steps):
    shares = [learning_rate_share(step, steps) for step in range(steps)]
    assert max(shares) == 1
    assert all(0 < share <= 1 for share in shares)
    assert steps < 10 or shares[-1] < 0.1


def test_rank_correlation_is_the_mean_of_spearman(generator):
    values = torch.randn(20, 9, generator=generator).round(decimals=1)
    predicted = torch.randn(20, 9, generator=generator)
    expected = [spearmanr(p, -v).statistic for p, v in zip(predicted, values, strict=True)]
    assert rank_correlation(predicted, values) == pytest.approx(np.mean(expected))
    # Rows without a ranking are left out, rows without an answer count zero.
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]])
    predicted = torch.tensor([[1.0, 0.5, 0.2], [1.0, 0.5, 0.2], [0.5, 0.5, 0.5]])
    assert rank_correlation(predicted, values) == pytest.approx(0.5)


def test_own_derivatives_are_those_of_finite_differences(generator):
    sorter = new_sorter("lstm", 3, seed=2).double()
    values = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    step = 1e-5 * torch.eye(3, dtype=torch.float64)
    expected = torch.stack(
        [(sorter(values + e) - sorter(values - e))[:, i] / 2e-5 for i, e in enumerate(step)], dim=1
    )
    found = own_derivatives(sorter, values)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-9)


def test_a_new_sorter_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second = new_sorter("lstm", 3, seed=4), new_sorter("lstm", 3, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv1.weight, second.conv1.weight)


def test_a_loss_that_is_not_finite_stops_training():
    recipe = SorterRecipe("lstm", 4, steps=3, batch_size=2, lr=float("inf"))
    with pytest.raises(ValueError, match="the loss is nan at step 3"):
        sorter_training.train_sorter(recipe, device=torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def short_evaluation():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorter_training, "EVALUATION_SEQUENCES", 100)
        patch.setattr(sorter_training, "GRADIENT_SEQUENCES", 10)
        patch.setattr(sorter_training, "DESCENT_STEPS", 2)
        yield


SHORT = ["--length", "4", "--steps", "60", "--batch_size", "16", "--device", "cpu"]


@pytest.fixture(scope="module")
def short_training(tmp_path_factory):
    path = tmp_path_factory.mktemp("sorter") / "made" / "s.pt"
    return path, train_sorter.main([*SHORT, "--output", str(path)])


def test_a_short_training_writes_a_sorter_better_than_an_untrained_one(short_training, generator):
    path, metrics = short_training
    values = training_sequences(300, 4, generator)
    trained = measure(load_sorter(path), values)
    untrained = measure(new_sorter("lstm", 4, seed=0), values)
    assert set(metrics["families"]) == set(FAMILIES)
    assert trained["rank_correlation"] > max(0.8, untrained["rank_correlation"] + 0.3)
    assert trained["rank_error"] < 0.8 * untrained["rank_error"]
    # The measures returned are in the file and are of the file.
    assert torch.load(path, weights_only=True)["metrics"] == metrics
    assert sorter_training.evaluate_sorter(load_sorter(path)) == metrics


def test_the_same_command_makes_the_same_bytes_in_place_of_another_file(
    short_training, tmp_path, capsys
):
    path, again = short_training[0], tmp_path / "again.pt"
    again.write_text("something else")
    train_sorter.main([*SHORT, "--output", str(again), "--overwrite"])
    assert again.read_bytes() == path.read_bytes()
    printed = capsys.readouterr().out
    assert all(family in printed for family in FAMILIES)
    assert "rank correlation" in printed


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--output", "made.pt"], FileExistsError, r"made\.pt would be overwritten"),
        (["--length", "8"], FileExistsError, r"sorter_lstm_8\.pt would be overwritten"),
        (["--output", ".", "--overwrite"], IsADirectoryError, "is a folder"),
        (["--device", "cuda"], ValueError, "this torch sees no GPU; give --device cpu"),
    ],
)
def test_what_cannot_be_made_is_refused_before_training(
    flags, error, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sorter_training, "train_sorter", lambda *_, **__: pytest.fail("trained"))
    Path("made.pt").touch()
    with pytest.raises(error, match=message):
        train_sorter.main([*SHORT, *flags])


def test_the_parser_knows_the_kinds_of_the_model():
    parser = train_sorter.build_parser()
    kinds = next(action.choices for action in parser._actions if action.dest == "kind")
    assert set(kinds) == set(HIDDEN_SIZES)


def test_the_script_hands_its_settings_and_flags_over_from_any_folder(tmp_path):
    (call,) = recorded_calls(ROOT / "script" / "train_sorter.sh", tmp_path, "--length", "24")
    options = parse_call(call)
    recipe = SorterRecipe(kind="lstm", length=24, steps=1)
    assert (options.length, options.steps) == (24, None)
    assert options.batch_size == recipe.batch_size
    assert (options.lr, options.seed) == (recipe.lr, recipe.seed)
