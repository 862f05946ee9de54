"""Scans and people on both sides of a split, and scans that a network was trained on."""

import csv
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import TINY, brain, forget_inputs, training_flags, write_scan

import predict
import test
import train_first_stage
import train_second_stage
from model.scaledense import ScaleDense
from utils.files import image_stem
from utils.networks import share
from utils.networks.checkpoint import Checkpoint, load_checkpoint, load_ensemble, save_checkpoint
from utils.networks.predictor import shipped_networks
from utils.scans import leakage
from utils.scans.cache import Cache
from utils.scans.cohort import Scan, open_cohort
from utils.scans.dataset import NO_CACHE, ScanDataset, open_for_one_pass
from utils.scans.volumes import GRID_AFFINE, InputRule
from utils.training.resume import LAST_NAME

ANY = InputRule(any_grid=True)
RAS = GRID_AFFINE @ np.diag([-1, 1, 1, 1])
UINT8 = np.clip(brain(TINY, 50), 0, 255).round().astype(np.uint8)


def contents_of(folder, input_rule=ANY, cache=NO_CACHE) -> dict[str, str]:
    scans = open_cohort(folder, None, input_rule)
    contents = ScanDataset(scans, input_rule, cache).content_hashes
    return {scan.subject_id: content for scan, content in zip(scans, contents, strict=True)}


def scan(name: str) -> Scan:
    return Scan(image_stem(name), Path(name), 50.0, 0, "LAS")


def scans(*names: str) -> list[Scan]:
    return [scan(name) for name in names]


def cohort_of(folder: Path, train: dict[str, int], val: dict[str, int]) -> Path:
    """Scans by name, each drawn from its own number: the same number, the same image."""
    rows = []
    for side, given in (("train", train), ("val", val)):
        for name, seed in given.items():
            age = 20 + 5 * (seed % 10)
            write_scan(folder / side / f"{name}.nii.gz", brain(TINY, age, seed))
            rows.append(f"{name},{age},{seed % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def flags_of(folder: Path, output: str, *more: str) -> list[str]:
    flags = [*training_flags(folder, folder / output), "--any_grid", "--epochs", "1"]
    return [*flags, "--cache", "none", "--num_workers", "0", *more]


@pytest.mark.parametrize(
    ("name", "volume", "affine"),
    [
        ("another_name.nii.gz", UINT8, GRID_AFFINE),
        ("uncompressed.nii", UINT8, GRID_AFFINE),
        ("floats.nii.gz", UINT8.astype(np.float32), GRID_AFFINE),
        ("integers.nii.gz", UINT8.astype(np.int16), GRID_AFFINE),
        ("mirrored_axis.nii.gz", UINT8[::-1], RAS),
    ],
)
def test_an_image_has_one_content_however_it_is_called_and_stored(tmp_path, name, volume, affine):
    write_scan(tmp_path / "a" / "scan.nii.gz", UINT8)
    write_scan(tmp_path / "b" / name, volume, affine)
    (expected,), (found,) = (contents_of(tmp_path / side).values() for side in "ab")
    assert found == expected
    assert re.fullmatch("[0-9a-f]{16}", found)


def test_one_voxel_makes_another_content(tmp_path):
    volume = UINT8.copy()
    volume[16, 18, 16] += 1
    assert (
        contents_of(write_scan(tmp_path / "a" / "1.nii", UINT8).parent)["1"]
        != (contents_of(write_scan(tmp_path / "b" / "1.nii", volume).parent)["1"])
    )


def test_the_content_does_not_depend_on_cache_or_input_rule(tmp_path):
    folder = tmp_path / "scans"
    for number in (1, 2):
        write_scan(folder / f"{number}.nii.gz", brain((64, 64, 64), 50, number))
    expected = contents_of(folder)
    assert len(set(expected.values())) == 2
    for kind in ("none", "device", "disk", "disk"):
        assert contents_of(folder, cache=Cache(kind, tmp_path / "kept")) == expected
    for input_rule in (
        InputRule(4, any_grid=True),
        InputRule(intensity="authors", any_grid=True),
    ):
        assert contents_of(folder, input_rule) == expected


def test_sessions_of_a_person_on_both_sides_are_named_with_the_way_to_let_them_pass(capsys):
    train = scans("OAS1_0001_MR1.nii.gz", "OAS1_0002_MR1.nii", "sub-7_ses-1_T1w.nii.gz", "x_1.nii")
    validation = scans("OAS1_0001_MR2.nii.gz", "sub-7_ses-2_T1w.nii.gz", "sub-70.nii", "x_2.nii")
    with pytest.raises(ValueError, match="2 in all") as error:
        leakage.require_separate_persons(train, validation)
    for text in (
        "OAS1_0001 (OAS1_0001_MR1.nii.gz in training, OAS1_0001_MR2.nii.gz in validation)",
        "sub-7 (sub-7_ses-1_T1w.nii.gz in training, sub-7_ses-2_T1w.nii.gz in validation)",
        "--allow_shared_persons",
        "split_dataset.py",
    ):
        assert text in str(error.value)
    leakage.require_separate_persons(train, validation, allowed=True)
    assert capsys.readouterr().out.startswith("note: the same person in training and in validation")
    with pytest.raises(ValueError, match=r"1 in all.*x_1.nii in training"):
        pattern = re.compile("^(x|[^_]+_[^_]+)")
        leakage.require_separate_persons(train[-1:], validation[-1:], pattern=pattern)


def test_long_lists_are_cut():
    train = scans(*(f"sub-{n}_ses-1.nii" for n in range(9)))
    validation = scans(*(f"sub-{n}_ses-2.nii" for n in range(9)))
    with pytest.raises(ValueError, match=r"9 in all.*sub-4.*, and 4 more;") as error:
        leakage.require_separate_persons(train, validation)
    assert "sub-5" not in str(error.value)


def test_a_person_in_both_folders_stops_training_before_anything_is_read(tmp_path, monkeypatch):
    folder = cohort_of(tmp_path, {"sub-1_ses-1": 1, "sub-2": 2}, {"sub-1_ses-2": 3, "sub-3": 4})
    monkeypatch.setattr("utils.scans.volumes.decode", None)
    with pytest.raises(ValueError, match=r"same person.*sub-1_ses-1.*sub-1_ses-2.*--allow_shared"):
        train_first_stage.main(flags_of(folder, "run"))
    assert not (folder / "run").exists()


def test_folds_that_share_a_person_stop_training(tmp_path):
    folder = cohort_of(tmp_path, {"sub-1_ses-1": 1, "sub-1_ses-2": 2}, {"sub-3": 3, "sub-4": 4})
    table = folder / "folds.csv"
    table.write_text("scan,fold\nsub-1_ses-1,0\nsub-1_ses-2,1\nsub-3,0\nsub-4,1\n")
    with pytest.raises(ValueError, match=r"same person.*sub-1_ses-2.nii.gz in training"):
        train_first_stage.main(flags_of(folder, "run", "--folds", str(table), "--fold", "0"))


def test_an_image_under_two_names_stops_training_unless_let_pass(tmp_path, capsys):
    folder = cohort_of(tmp_path, {"a": 1, "b": 2, "c": 3}, {"d": 2, "e": 4})
    with pytest.raises(
        ValueError, match=r"same image.*1 in all: b.nii.gz in training, d.nii.gz in validation"
    ):
        train_first_stage.main(flags_of(folder, "run"))
    assert not (folder / "run").exists()
    capsys.readouterr()
    train_first_stage.main(flags_of(folder, "run", "--allow_shared_persons"))
    assert capsys.readouterr().out.count("note: the same image") == 1
    # A run is guarded when it is resumed as well, and how does not make it another run.
    with pytest.raises(ValueError, match="same image"):
        train_first_stage.main(flags_of(folder, "run", "--resume"))
    flags = ["--allow_shared_persons", "--resume", "--subject_pattern", "^[a-e]$", "--epochs", "2"]
    last = train_first_stage.main(flags_of(folder, "run", *flags)).parent / LAST_NAME
    assert load_checkpoint(last).summary["epoch"] == 2
    assert load_checkpoint(last).summary["flags"]["subject_pattern"] == "^[a-e]$"


def test_checkpoints_of_both_stages_hold_the_contents_of_their_training_scans(cohort, trained):
    expected = sorted(contents_of(cohort / "train").values())
    assert len(expected) == 8
    for stage in ("first", "second"):
        assert load_checkpoint(trained[stage]).trained_on == expected


def test_a_second_stage_knows_the_scans_of_both_trainings(tmp_path, cohort, trained):
    folder = cohort_of(tmp_path, {"a": 101, "b": 102}, {"c": 103, "d": 104})
    flags = [flag for flag in flags_of(folder, "run") if flag != "--any_grid"]
    best = train_second_stage.main([*flags, "--first_stage_net", str(trained["first"])])
    both = {*contents_of(cohort / "train").values(), *contents_of(folder / "train").values()}
    assert load_checkpoint(best).trained_on == sorted(both)
    assert len(both) == 10


@pytest.mark.parametrize("flag", ["--first_stage_net", "--init_from"])
def test_validating_on_what_the_network_to_start_from_has_seen_is_refused(
    tmp_path, trained, cohort, flag
):
    folder = cohort_of(tmp_path, {"a": 101, "b": 102}, {"c": 103})
    (folder / "val" / "twin.nii.gz").symlink_to(cohort / "train" / "train-3.nii.gz")
    with (folder / "labels.csv").open("a") as sheet:
        sheet.write("twin,50,1\n")
    main = train_first_stage.main if flag == "--init_from" else train_second_stage.main
    flags = [*flags_of(folder, "run", flag, str(trained["first"]))]
    if flag == "--first_stage_net":
        flags.remove("--any_grid")
    with pytest.raises(
        ValueError, match=r"trained on 1 of the 2 scans that should be new to it: twin.nii.gz;"
    ):
        main(flags)
    assert not (folder / "run").exists()


def test_a_resumed_run_is_not_judged_by_what_it_has_learnt_from(tmp_path, capsys):
    folder = cohort_of(tmp_path, {"a": 1, "b": 2, "c": 3}, {"d": 4, "e": 5})
    table = folder / "folds.csv"
    flags = flags_of(folder, "run", "--folds", str(table), "--fold", "0")
    table.write_text("scan,fold\na,1\nb,1\nc,1\nd,0\ne,0\n")
    before = load_checkpoint(train_first_stage.main(flags)).trained_on
    table.write_text("scan,fold\na,0\nb,1\nc,1\nd,1\ne,0\n")  # made anew with another seed
    flags += ["--resume", "--epochs", "2"]
    with pytest.raises(ValueError, match=r"training scans: a is missing, d is new; validation"):
        train_first_stage.main([*flags, "--allow_shared_persons"])
    forget_inputs(folder / "run")  # of a run that was begun before these were compared
    with pytest.raises(
        ValueError,
        match=r"last_model.*: trained on 1 of the 2 scans that should be new to it: a.nii.gz;",
    ):
        train_first_stage.main(flags)
    capsys.readouterr()
    best = train_first_stage.main([*flags, "--allow_shared_persons"])
    assert (
        capsys.readouterr().out.count("trained on 1 of the 2 scans that should be new to it") == 1
    )
    now = load_checkpoint(best.parent / LAST_NAME).trained_on
    assert len(before) == 3
    assert set(now) == {*before, contents_of(folder / "val")["d"]}


def report_on(folder, output, *networks) -> dict:
    test.main(
        [
            *("--test_folder", str(folder), "--output_dir", str(output), "--device", "cpu"),
            *("--num_workers", "0", "--model_name", *map(str, networks)),
        ]
    )
    return json.loads((output / "metrics.json").read_text())


def test_testing_on_training_scans_is_said_and_counted(cohort, trained, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "new.nii.gz").symlink_to(cohort / "test" / "test-1.nii.gz")
    seen = nibabel.load(cohort / "train" / "train-2.nii.gz")
    nibabel.save(seen, folder / "renamed.nii")
    report = report_on(folder, tmp_path / "out", trained["second"])
    assert report["scans_in_training_set"] == 1
    printed = capsys.readouterr().out
    assert "note: 1 of 2 scans were in this network's training set" in printed
    assert "renamed.nii" in printed
    assert "new.nii" not in printed
    report = report_on(cohort / "test", tmp_path / "fresh", trained["first"])
    assert report["scans_in_training_set"] == 0
    assert "training set" not in capsys.readouterr().out


def test_predict_says_it_in_the_row_of_the_scan(grid_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("prediction.records.jobs_that_fit", lambda asked, scans: 1)
    names = ["test-1.nii.gz", "test-2.nii.gz"]
    save_checkpoint(
        Checkpoint(
            ScaleDense("compact", mean_age=50.0).eval(),
            InputRule(4),
            summary={"training_hashes": [contents_of(grid_cohort / "test")["test-2"]]},
        ),
        tmp_path / "net.pt",
    )
    scans = [str(grid_cohort / "test" / name) for name in names]
    flags = ["--model_name", str(tmp_path / "net.pt"), "--device", "cpu", "--no-report"]
    assert predict.main([*scans, "--output_dir", str(tmp_path / "out"), *flags]) == 0
    with (tmp_path / "out" / "predictions.tsv").open(encoding="utf-8") as file:
        messages = [row["message"] for row in csv.DictReader(file, delimiter="\t")]
    assert ["in this network's training set" in message for message in messages] == [False, True]


def test_an_ensemble_has_seen_what_any_of_its_networks_has(trained, tmp_path):
    folder = cohort_of(tmp_path, {"a": 101, "b": 102}, {"c": 103})
    other = train_first_stage.main(flags_of(folder, "run"))
    ensemble = load_ensemble([trained["first"], other])
    assert ensemble.trained_on == sorted(
        {*load_checkpoint(trained["first"]).trained_on, *contents_of(folder / "train").values()}
    )
    assert len(ensemble.trained_on) == 10


def test_networks_that_hold_no_contents_work_and_say_nothing(capsys, tmp_path):
    checkpoint = Checkpoint(ScaleDense(), InputRule(4))  # as old ones are, and the authors'
    save_checkpoint(checkpoint, tmp_path / "old.pt")
    assert load_ensemble([tmp_path / "old.pt"]).trained_on is None
    assert len(load_ensemble(shipped_networks()).trained_on) == 343
    (folder := tmp_path / "scans").mkdir()
    write_scan(folder / "a.nii.gz", UINT8)
    found = open_cohort(folder, None, ANY)
    contents = open_for_one_pass(found, ANY).content_hashes
    assert leakage.note_seen(found, contents, None) is None
    leakage.require_unseen(found, contents, (), source="old.pt")
    assert not capsys.readouterr().out


def test_a_shipped_network_still_knows_its_training_scans(trained, tmp_path):
    output = tmp_path / "given.pt"
    share.main(["ship", str(trained["first"]), str(output), "--cohort", "C", "--licence", "L"])
    assert load_checkpoint(output).trained_on == load_checkpoint(trained["first"]).trained_on
