"""Both training scripts from flags to files, on tiny generated cohorts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import linked_cohort, training_flags, write_cohort, write_sidecars

import test
import train_first_stage
import train_second_stage
from model.losses import AgeLoss
from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage
from utils.networks.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_first_stage,
    save_checkpoint,
)
from utils.networks.execution import choose_execution
from utils.people.labels import read_labels
from utils.scans.cache import Cache
from utils.scans.cohort import Scan, open_cohort
from utils.scans.dataset import ScanDataset
from utils.scans.provenance import UNKNOWN, Provenance
from utils.scans.volumes import InputRule
from utils.training import trainer
from utils.training.options import PUBLISHED_FLAGS, parse_first_stage, parse_second_stage
from utils.training.recipes import FIRST_STAGE, SECOND_STAGE
from utils.training.resume import LAST_NAME
from utils.training.run import build_second_stage, build_training
from utils.training.trainer import BEST_NAME, RunInfo, Trainer

NEEDED = ["--train_folder", "a", "--val_folder", "b", "--labels", "c", "--output_dir", "d"]


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def epochs_of(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_time(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_both_stages_leave_checkpoints_metrics_and_events(trained):
    for stage in ("first", "second"):
        folder = trained[stage].parent
        assert (folder / BEST_NAME).is_file()
        assert (folder / LAST_NAME).is_file()
        assert [line["epoch"] for line in epochs_of(folder)] == [1, 2]
    first, second = (epochs_of(trained[stage].parent)[-1] for stage in ("first", "second"))
    assert {"train/total", "train/mse", "train/rank", "train/pair", "lr"} <= set(first)
    assert {"validation/mae", "validation/pearson", "validation/mean_brain_pad"} <= set(first)
    extra = {"validation/stage_one_mae", "validation/within_bin_spread",
             "validation/within_bin_spread_needed"}  # fmt: skip
    assert extra == set(second) - set(first)
    events = next((trained["second"].parent / "tensorboard").iterdir()).read_bytes()
    assert all(name.encode() in events for name in (*second, "validation/scatter") if "/" in name)


def test_best_checkpoint_is_that_of_the_lowest_validation_error(trained):
    lines = epochs_of(trained["first"].parent)
    best = min(lines, key=lambda line: line["validation/mae"])
    summary = load_checkpoint(trained["first"]).summary
    assert summary["epoch"] == best["epoch"]
    assert summary["validation"]["validation/mae"] == best["validation/mae"]
    assert summary["scans"] == {"train": 8, "validation": 4}


def test_second_stage_reads_scans_as_the_first_and_leaves_it_bit_identical(trained):
    first, second = load_checkpoint(trained["first"]), load_checkpoint(trained["second"])
    assert second.input_rule == first.input_rule == InputRule(any_grid=True)
    assert same(first.model.state_dict(), second.model.first_stage.state_dict())


class Interruption(Exception):
    pass


@pytest.mark.parametrize(
    ("stage", "schedule"),
    [
        ("first", "cosine"),
        pytest.param("second", "plateau", marks=pytest.mark.slow),
    ],
)
def test_two_epochs_and_two_resumed_ones_equal_four(
    small_cohort, trained, tmp_path, monkeypatch, stage, schedule
):
    def flags(name):
        flags = [*training_flags(small_cohort, tmp_path / name), "--epochs", "4"]
        flags += ["--batch_size", "2", "--schedule", schedule]
        if stage == "first":
            return [*flags, "--any_grid"]
        # The first stage has learnt from scans that validate here, which is of no matter to this.
        return [*flags, "--first_stage_net", str(trained["first"]), "--allow_shared_persons"]

    main = train_first_stage.main if stage == "first" else train_second_stage.main
    main(flags("whole"))
    run_epoch = Trainer._train_epoch

    def interrupt(self):
        if self.epoch == 3:
            raise Interruption
        return run_epoch(self)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupt)
    with pytest.raises(Interruption):
        main(flags("halves"))
    monkeypatch.setattr(Trainer, "_train_epoch", run_epoch)
    main([*flags("halves"), "--resume"])

    for name in (BEST_NAME, LAST_NAME):  # the same seed gave the same weights
        assert same(weights(tmp_path / "whole" / name), weights(tmp_path / "halves" / name))
    whole, halves = (epochs_of(tmp_path / name) for name in ("whole", "halves"))
    assert without_time(whole) == without_time(halves)


def test_early_stopping_ends_after_so_many_epochs_without_improvement(
    cohort, tmp_path, monkeypatch
):
    errors = iter([9.0, 8.0, 8.5, 8.5, 1.0])
    validate = Trainer._validate
    monkeypatch.setattr(
        Trainer,
        "_validate",
        lambda self, ages: validate(self, ages) | {"validation/mae": next(errors)},
    )
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self: {"total": 0.0})
    flags = [*training_flags(cohort, tmp_path), "--any_grid"]
    monkeypatch.setattr(trainer, "refresh_statistics", lambda *given: None)
    flags += ["--epochs", "9", "--early_stop", "2"]
    train_first_stage.main(flags)
    assert len(epochs_of(tmp_path)) == 4


def train_on(scans, model, folder, *flags, repeats=1) -> Trainer:
    """Trains on `scans`, each of which an epoch reads so many times."""
    args = parse_first_stage([*NEEDED, "--batch_size", "4", *flags])
    args.ema = 0.0
    repeated = ScanDataset(scans.scans * repeats, scans.input_rule, scans.cache)
    trainer = Trainer(
        model,
        AgeLoss(rank_weight=0),
        datasets=(repeated, scans),
        training=build_training(args, 2),
        execution=choose_execution("cpu"),
        info=RunInfo(folder),
    )
    trainer.run()
    return trainer


@pytest.fixture
def four_scans(tmp_path):
    labels = read_labels(write_cohort(tmp_path / "four", {"train": 4}, seed=3))
    input_rule = InputRule(any_grid=True)
    scans = open_cohort(tmp_path / "four" / "train", labels, input_rule, need_age=True)
    return ScanDataset(scans, input_rule, Cache("device"))


@pytest.mark.parametrize("collapsed", [True, False])
def test_second_stage_that_repeats_one_age_a_bin_is_warned_of(
    four_scans, tmp_path, capsys, collapsed
):
    model = TSAN(ScaleDense(mean_age=50), SecondStage())
    # One rounded age for all four; without its last weights the residual is one number.
    torch.nn.init.constant_(model.first_stage.head[-1].weight, 0)
    torch.nn.init.constant_(model.second_stage.head[-1].weight, 0 if collapsed else 30)
    train_on(four_scans, model, tmp_path / "run", "--epochs", "1", "--lr", "1e-12")
    warned = "warning: the second stage gives nearly one age" in capsys.readouterr().out
    assert warned == collapsed


@pytest.mark.slow
def test_four_volumes_can_be_overfitted_by_both_stages(four_scans, tmp_path):
    ages = np.array([scan.age for scan in four_scans.scans])
    assert np.abs(ages - ages.mean()).mean() > 10
    flags = ["--epochs", "2", "--augment", "none", "--weight_decay", "0", "--lr", "4e-3"]
    first = ScaleDense(mean_age=float(ages.mean()), age_spread=float(ages.std()))
    assert train_on(four_scans, first, tmp_path / "first", *flags, repeats=5).best_mae < 3
    cascade = TSAN(first, SecondStage())
    assert train_on(four_scans, cascade, tmp_path / "second", *flags, repeats=5).best_mae < 3


def test_training_refuses_a_folder_that_holds_something(cohort, tmp_path):
    (tmp_path / "notes.txt").touch()
    flags = [*training_flags(cohort, tmp_path), "--any_grid"]
    with pytest.raises(FileExistsError, match=r"not empty: .*--resume to continue"):
        train_first_stage.main(flags)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train_first_stage.main([*flags, "--resume"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_interrupted_in_its_first_epoch_starts_anew_with_resume(
    cohort, tmp_path, monkeypatch, capsys
):
    flags = [*training_flags(cohort, tmp_path), "--any_grid", "--epochs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", lambda self: next(iter(())))
        with pytest.raises(StopIteration):
            train_first_stage.main(flags)
    assert {path.name for path in tmp_path.iterdir()} == {"tensorboard", LAST_NAME}
    note = "note: the checkpoint will not say how its scans were preprocessed"
    assert capsys.readouterr().out.count(note) == 1
    train_first_stage.main([*flags, "--resume"])
    assert len(epochs_of(tmp_path)) == 1


def test_resuming_with_other_flags_is_refused(cohort, trained, tmp_path):
    folder = trained["first"].parent
    flags = [*training_flags(cohort, folder), "--any_grid", "--lr", "1e-4", "--resume"]
    for other, message in (
        (["--no-use_sex"], "--use_sex was True, is False"),
        (["--lr", "0.5"], r"--lr was 0\.0001, is 0\.5"),
        (["--rank_weight", "1"], r"--rank_weight was 10\.0, is 1\.0"),
    ):
        with pytest.raises(ValueError, match=f"give the same to resume .{message}"):
            train_first_stage.main([*flags, *other])


def test_bad_input_stops_training_before_anything_is_written(cohort, tmp_path):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("train-1.nii.gz,50,0\ntrain-2.nii.gz,old,1\n")
    flags = [*training_flags(cohort, tmp_path / "out"), "--any_grid", "--labels", str(sheet)]
    with pytest.raises(ValueError, match=r"sheet\.csv, row 2: train-2: age 'old'"):
        train_first_stage.main(flags)
    sheet.write_text("train-1.nii.gz,50,0\n")
    with pytest.raises(ValueError, match=r"train-2\.nii\.gz: no row named train-2"):
        train_first_stage.main(flags)
    with pytest.raises(ValueError, match=r"not on the FSL MNI152 2 mm grid.*--any_grid"):
        train_first_stage.main(training_flags(cohort, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_checkpoints_say_how_the_scans_were_made_by_sidecars_or_flags(
    cohort, trained, tmp_path, capsys
):
    assert load_checkpoint(trained["first"]).provenance == UNKNOWN
    folder = linked_cohort(cohort, tmp_path / "cohort")
    flags = [*training_flags(folder, tmp_path / "a"), "--any_grid", "--epochs", "1"]
    stated = train_first_stage.main([*flags, "--registration", "affine"])
    assert load_checkpoint(stated).provenance == Provenance("affine")
    assert "preprocessing: registration affine, mask unknown" in capsys.readouterr().out

    for name in ("train", "val"):
        write_sidecars(folder / name, "affine")
    flags = [*training_flags(folder, tmp_path / "b"), "--any_grid", "--epochs", "1"]
    first = train_first_stage.main(flags)
    affine = Provenance("affine", "template", "builtin")
    assert load_checkpoint(first).provenance == affine

    # Scans without sidecars are those of the first stage.
    flags = [*training_flags(cohort, tmp_path / "c"), "--epochs", "1"]
    second = train_second_stage.main([*flags, "--first_stage_net", str(first)])
    assert load_checkpoint(second).provenance == affine


def test_sidecars_that_contradict_flags_or_each_other_stop_training_at_once(cohort, tmp_path):
    folder = linked_cohort(cohort, tmp_path / "cohort")
    flags = [*training_flags(folder, tmp_path / "out"), "--any_grid"]
    write_sidecars(folder / "train", "affine")
    with pytest.raises(ValueError, match=r"val-1\.nii\.gz has no sidecar"):
        train_first_stage.main(flags)
    write_sidecars(folder / "val", "affine", backend="fsl")
    with pytest.raises(ValueError, match=r"train-1\.nii\.gz .*val-1\.nii\.gz .*backend fsl"):
        train_first_stage.main(flags)
    write_sidecars(folder / "val", "affine")
    with pytest.raises(ValueError, match="--registration deformable, not affine as the sidecar"):
        train_first_stage.main([*flags, "--registration", "deformable"])
    assert not (tmp_path / "out").exists()


def test_second_stage_refuses_scans_made_in_another_way_than_the_first_stages(cohort, tmp_path):
    flags = training_flags(cohort, tmp_path / "out")
    checkpoint = tmp_path / "first.pt"
    save_checkpoint(
        Checkpoint(
            ScaleDense(),
            InputRule(any_grid=True),
            provenance=Provenance("deformable", "template", "fsl"),
            summary={},
        ),
        checkpoint,
    )
    flags += ["--first_stage_net", str(checkpoint)]
    message = r"train: registration affine, not deformable as .*first\.pt"
    with pytest.raises(ValueError, match=message):
        train_second_stage.main([*flags, "--registration", "affine"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_resuming_on_scans_made_in_another_way_is_refused(cohort, tmp_path):
    folder = linked_cohort(cohort, tmp_path / "cohort")
    flags = [*training_flags(folder, tmp_path / "out"), "--any_grid", "--epochs", "1"]
    for name in ("train", "val"):
        write_sidecars(folder / name, "affine")
    train_first_stage.main(flags)
    for name in ("train", "val"):
        write_sidecars(folder / name, "deformable")
    with pytest.raises(ValueError, match=r"to resume .registration deformable, not affine"):
        train_first_stage.main([*flags, "--resume"])


def test_a_scan_in_both_folders_is_refused(cohort, tmp_path):
    flags = [*training_flags(cohort, tmp_path), "--any_grid"]
    flags += ["--val_folder", str(cohort / "train")]
    with pytest.raises(ValueError, match="train: given twice; each folder of scans once"):
        train_first_stage.main(flags)


def test_sorter_of_another_length_names_the_command_that_makes_one(cohort, tmp_path):
    flags = [*training_flags(cohort, tmp_path), "--any_grid", "--sorter", "shipped"]
    with pytest.raises(FileNotFoundError, match=r"script/train_sorter\.sh --kind lstm --length 4"):
        train_first_stage.main(flags)


def test_shipped_sorter_trains_and_drops_the_short_last_batch(cohort, tmp_path):
    flags = [*training_flags(cohort, tmp_path), "--any_grid", "--sorter", "shipped"]
    train_first_stage.main([*flags, "--batch_size", "8", "--epochs", "1"])
    assert epochs_of(tmp_path)[0]["train/rank"] > 0


def test_second_stage_needs_the_first_ones_use_of_the_sex(cohort, trained, tmp_path):
    flags = [*training_flags(cohort, tmp_path / "a"), "--first_stage_net", str(trained["first"])]
    with pytest.raises(ValueError, match="trained with use_sex True"):
        train_second_stage.main([*flags, "--no-use_sex"])


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_fresh_second_stage_starts_at_a_mean_of_the_rounded_age_and_the_mean_age(share, trained):
    first = load_first_stage(trained["first"], use_sex=True)
    flags = ["--first_stage_net", str(trained["first"]), "--rough_share", str(share)]
    scans = [Scan(str(age), Path("x"), age, 0, "LAS", (91, 109, 91)) for age in (60.0, 61.0)]
    args = parse_second_stage([*NEEDED, *flags])
    model, origins = build_second_stage(args, scans, first.input_rule, first)
    assert origins == [first]
    image, sex = torch.zeros(1, 1, 32, 32, 32), torch.zeros(1, dtype=torch.long)
    residual = model.second_stage.eval()
    with torch.inference_mode():
        ages = [r + residual(image, sex, torch.tensor([[r]])).item() for r in (20.0, 80.0)]
    assert ages[1] - ages[0] == pytest.approx(60 * share, rel=1e-4)
    assert ages[0] == pytest.approx(20 * share + 60.5 * (1 - share), abs=1)


def test_a_second_stage_with_a_share_of_0_is_fresh_as_published(trained):
    first = load_first_stage(trained["first"], use_sex=True)
    flags = [*NEEDED, "--first_stage_net", str(trained["first"]), "--rough_share", "0"]
    torch.manual_seed(3)
    model, _ = build_second_stage(parse_second_stage(flags), [], first.input_rule, first)
    torch.manual_seed(3)
    published = SecondStage(first.model.encoder.width)
    assert same(model.second_stage.state_dict(), published.state_dict())


PUBLISHED = [
    *("--model", "ScaleDense", "--batch_size", "32", "--epochs", "150", "--lr", "1e-3"),
    *("--weight_decay", "5e-4", "--loss", "mse", "--aux_loss", "ranking", "--lbd", "10"),
    *("--beta", "1", "--train_folder", "a", "--valid_folder", "b", "--test_folder", "c"),
    *("--excel_path", "d.xls", "--output_dir", "e/", "--model_name", "f", "--npz_name", "g"),
    *("--plot_name", "h", "--dis_range", "5", "--sorter", "s", "--num_workers", "1"),
    *("--print_freq", "20", "--use_gender", "False", "--schedular", "cosine", "--min_lr", "1e-6"),
    *("--warmup_epoch", "0", "--warmup_lr_init", "1e-6", "--first_stage_net", "i"),
]


def test_published_flags_are_accepted_and_mean_what_they_say():
    assert set(PUBLISHED_FLAGS) <= set(PUBLISHED)
    first = parse_first_stage(PUBLISHED)
    assert first.unused == [
        "--model", "--first_stage_net", "--test_folder", "--model_name", "--npz_name",
        "--plot_name", "--dis_range", "--print_freq", "--min_lr", "--warmup_lr_init",
    ]  # fmt: skip
    assert (first.rank_weight, first.pair_weight, first.val_folder) == (10, 1, ["b"])
    assert (first.use_sex, first.schedule, first.warmup_epochs) == (False, "cosine", 0)
    assert (first.labels, first.sorter) == (["d.xls"], "s")
    second = parse_second_stage(PUBLISHED)
    assert set(first.unused) - set(second.unused) == {"--first_stage_net", "--dis_range"}
    assert (second.age_step, second.first_stage_net) == (5, "i")
    tested = test.parse(PUBLISHED)
    assert {"--sorter", "--lr", "--train_folder", "--lbd"} <= set(tested.unused)
    assert (tested.test_folder, tested.use_sex, tested.model_name) == (["c"], False, ["f"])


def test_recipes_set_their_values_and_single_flags_win():
    first = parse_first_stage([*NEEDED, "--recipe", "paper", "--epochs", "3"])
    assert (first.width, first.optimizer, first.lr, first.weight_decay) == (
        "released", "adam", 1e-3, 5e-4)  # fmt: skip
    assert (first.batch_size, first.epochs, first.early_stop, first.schedule) == (
        32, 3, 20, "plateau")  # fmt: skip
    assert (first.sorter, first.pairs, first.ema, first.augment, first.resolution) == (
        "shipped", "random", 0, "none", 2)  # fmt: skip
    second = parse_second_stage([*NEEDED, "--first_stage_net", "f", "--recipe", "paper"])
    assert (second.optimizer, second.lr, second.rough_share, second.rough_age_noise) == (
        "sgd", 1e-5, 0, 0)  # fmt: skip
    ours = parse_second_stage([*NEEDED, "--first_stage_net", "f"])
    assert (ours.optimizer, ours.rough_share, ours.rough_age_noise) == ("adamw", 0.5, "auto")
    assert ours.epochs == parse_first_stage(NEEDED).epochs  # it is trained as long
    for recipes in (FIRST_STAGE, SECOND_STAGE):  # none lacks a setting
        assert {frozenset(values) for values in recipes.values()} == {frozenset(recipes["ours"])}


def test_any_grid_implies_what_volumes_of_any_size_can_have_and_single_flags_win():
    usual, any_grid = (parse_first_stage([*NEEDED, *flags]) for flags in ([], ["--any_grid"]))
    assert (usual.resolution, usual.crop) == (4, True)
    assert (any_grid.resolution, any_grid.crop) == (2, False)
    assert parse_first_stage([*NEEDED, "--any_grid", "--resolution", "4"]).resolution == 4


def test_another_seed_gives_other_weights(small_cohort, tmp_path):
    flags = ["--any_grid", "--batch_size", "2", "--epochs", "1", "--cache_dir", str(tmp_path)]
    one, two = (
        train_first_stage.main(
            [*training_flags(small_cohort, tmp_path / seed), *flags, "--seed", seed]
        )
        for seed in "12"
    )
    assert not same(weights(one), weights(two))


@pytest.mark.parametrize(
    "flags",
    [["--epochs", "0"], ["--lr", "-1"], ["--augment", "all"], ["--width", "wide"],
     ["--batch_size", "x"], ["--recipe", "mine"], ["--use_sex", "perhaps"], ["--epoch", "3"],
     ["--resolution", "3"]],
)  # fmt: skip
def test_flags_out_of_range_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as exited:
        parse_first_stage([*NEEDED, *flags])
    assert exited.value.code == 2
    assert capsys.readouterr().err


def test_volumes_too_small_for_the_width_are_refused_before_the_first_batch(cohort, tmp_path):
    flags = [*training_flags(cohort, tmp_path / "run"), "--any_grid"]
    with pytest.raises(ValueError, match=r"train-1\.nii\.gz: .* at least 42 a side"):
        train_first_stage.main([*flags, "--width", "released"])
    assert not (tmp_path / "run").exists()
