"""Several sites: sheets and folders of each, batches, folds and figures."""

import csv
import json
import os
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, brain, write_scan

import test
import train_first_stage
from data_preprocessing import make_folds
from utils.people.labels import read_labels
from utils.scans.cohort import describe, open_cohort
from utils.scans.dataset import (
    ScanDataset,
    batch_sizes,
    draw_over_sites,
    draw_stratified,
    training_loader,
)
from utils.scans.split import deal_to_folds
from utils.scans.volumes import InputRule, find_scans

ANY = InputRule(any_grid=True)
SITES = ("oslo", "lyon")


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """A folder with train/ and val/, and a sheet, of each site; oslo's sheet has no site."""
    folder, generator = tmp_path_factory.mktemp("sites"), np.random.default_rng(0)
    for place, site in enumerate(SITES):
        rows = ["name,age,sex" + ",site" * place]
        for part, count in (("train", 6), ("val", 3)):
            for index in range(count):
                age, name = round(generator.uniform(20, 90), 1), f"{site}-{part}{index}"
                volume = brain(TINY, age, len(rows) + 99 * place)
                write_scan(folder / site / part / f"{name}.nii.gz", volume)
                rows.append(f"{name},{age},{index % 2}" + f",{site}" * place)
        (folder / f"{site}.csv").write_text("\n".join(rows) + "\n")
    return folder


def sheets(folder, *more) -> list[str]:
    return ["--labels", *(str(folder / f"{site}.csv") for site in SITES), "--site", "oslo", *more]


def folders(folder, part) -> list[str]:
    return [str(folder / site / part) for site in SITES]


def training_flags(sites, output, *more) -> list[str]:
    return [
        *("--train_folder", *folders(sites, "train"), "--val_folder", *folders(sites, "val")),
        *(*sheets(sites), "--output_dir", str(output), "--any_grid", "--device", "cpu"),
        *("--epochs", "2", "--batch_size", "4", *more),
    ]


@pytest.fixture(scope="module")
def trained(sites, tmp_path_factory):
    return train_first_stage.main(training_flags(sites, tmp_path_factory.mktemp("run") / "first"))


def people(tmp_path, **tables) -> list:
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return [tmp_path / f"{name}.csv" for name in tables]


def scans_of(tmp_path, *names) -> list:
    return [tmp_path / f"{name}.nii.gz" for name in names]


def test_a_cohort_is_described_by_site_only_where_sites_are_known(sites):
    paths = find_scans(*folders(sites, "train"))
    names = [str(sites / f"{site}.csv") for site in SITES]
    labels = read_labels(names, paths, site="oslo")
    text = describe(open_cohort(folders(sites, "train"), labels, ANY))
    total, lyon, oslo = text.splitlines()
    assert total.startswith("12 scans, 12 with an age (")
    assert lyon.startswith("  site lyon: 6 scans, 6 with an age (")
    assert oslo.endswith("3 female, 3 male")
    labels = read_labels(names[0], paths[:6])
    assert "site" not in describe(open_cohort(sites / "oslo" / "train", labels, ANY))
    labels = read_labels(names, paths)
    assert "site n/a: 6 scans" in describe(open_cohort(folders(sites, "train"), labels, ANY))


@pytest.mark.parametrize("column", ["site", "Scanner", "study"])
def test_a_site_may_be_called_scanner_or_study(column, tmp_path):
    tables = people(tmp_path, a=f"id,age,sex,{column}\ns1,50,F,Hammersmith\ns2,60,M,n/a\n")
    labels = read_labels(tables, site="elsewhere")
    found = [labels.find(path).site for path in scans_of(tmp_path, "s1", "s2")]
    assert found == ["Hammersmith", "elsewhere"]


def test_several_sheets_give_each_scan_what_any_of_them_knows(tmp_path):
    tables = people(
        tmp_path, ages="id,age,sex\ns1,50,F\n001,20,M\n", sites="id,site,age\ns1,A,50\n1,B,70\n"
    )
    scans = scans_of(tmp_path, "s1", "001")
    labels = read_labels(tables, scans)
    first, second = map(labels.find, scans)
    assert (first.age, first.sex, first.site) == (50, 0, "A")
    assert (second.age, second.site) == (20, None)  # 001 is not 1 where a sheet has it as it is


@pytest.mark.parametrize(
    ("row", "message"),
    [("s1,51,F,A", r"b\.csv, row 2: s1\.nii\.gz: age 51\.0, but 50\.0 in .*a\.csv, row 3"),
     ("s1,50,M,A", "sex 1, but 0 in"), ("s1,50,F,B", "site B, but A in")],
)  # fmt: skip
def test_two_sheets_that_contradict_each_other_are_refused_with_both_rows(row, message, tmp_path):
    first = "id,age,sex,site\ns2,30,F,A\ns1,50,F,A\n"
    tables = people(tmp_path, a=first, b=f"id,age,sex,site\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_labels(tables, scans_of(tmp_path, "s1", "s2"))
    agreed = people(tmp_path, a=first, b="id,age,sex,site\ns1,50,F,A\n")
    assert read_labels(agreed, scans_of(tmp_path, "s1")).find(tmp_path / "s1.nii.gz").age == 50


def test_one_name_in_two_folders_is_refused_with_both_files(sites, tmp_path):
    twin = write_scan(tmp_path / "more" / "lyon-train0.nii", brain(TINY, 50))
    flags = training_flags(sites, tmp_path / "run")
    flags.insert(flags.index("--val_folder"), str(twin.parent))
    with pytest.raises(ValueError, match=r"lyon/train/lyon-train0\.nii\.gz and .*more/lyon-train0"):
        train_first_stage.main(flags)


@pytest.mark.parametrize("largest", [4, 8, 16])
@pytest.mark.parametrize(
    "counts", [(173, 90, 25), (100, 100), (20, 300), (8,) * 30, (351, 40, 40), (5, 3, 1)]
)
def test_batches_are_alike_in_sites_and_in_age(counts, largest):
    ages = torch.cat([20 + place * 5 + 40 * torch.rand(n) for place, n in enumerate(counts[:3])])
    ages = torch.cat([ages, 20 + 60 * torch.rand(sum(counts[3:]))])
    site = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sizes = batch_sizes(len(ages), largest, least=2, equal=False, even=True)
    for _ in range(3):
        drawn = draw_over_sites(ages, site, sizes)
        assert [len(batch) for batch in drawn] == sizes
        assert sorted(chain.from_iterable(drawn)) == list(range(len(ages)))
        for place, count in enumerate(counts):
            inside = torch.tensor([int((site[batch] == place).sum()) for batch in drawn])
            assert (inside - count / len(sizes)).abs().max() < 1
        means = torch.stack([ages[batch].mean() for batch in drawn])
        random_spread = ages.std() / largest**0.5
        assert len(sizes) < 5 or means.std() < (0.75 if largest == 4 else 0.5) * random_spread


def test_each_site_of_a_batch_has_its_range_of_ages():
    ages = torch.cat([torch.linspace(20, 90, 80), torch.linspace(20, 50, 40)])
    site = torch.tensor([0] * 80 + [1] * 40)
    for batch in draw_over_sites(ages, site, [12] * 10):
        for place, middle in ((0, 55), (1, 35)):
            years = ages[torch.tensor(batch)[site[batch] == place]]
            assert ((years < middle).sum() - (years >= middle).sum()).abs() <= 1


def test_scans_that_do_not_fill_a_batch_change_and_batches_are_drawn_anew():
    ages, site, left_out = torch.rand(11), torch.tensor([0] * 7 + [1] * 4), torch.zeros(11)
    epochs = [draw_over_sites(ages, site, [4, 4]) for _ in range(300)]
    for epoch in epochs:
        seen = set(chain.from_iterable(epoch))
        left_out += torch.tensor([float(scan not in seen) for scan in range(11)])
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) > 290
    assert (left_out / 300 - 3 / 11).abs().max() < 0.12


@pytest.mark.parametrize("site", [None, "A"])
def test_batches_of_no_site_or_one_are_those_of_ages_alone(site, seven_scans, tmp_path):
    rows = "".join(f"sub-{number},{20 + number},F\n" for number in (1, 2, 3, 4, 5, 7, 10))
    labels = read_labels(people(tmp_path, a="id,age,sex\n" + rows), site=site)
    dataset = ScanDataset(open_cohort(seven_scans, labels, ANY), ANY)
    loader = training_loader(dataset, batch_size=3, full_batches=False, stratify=True)
    torch.manual_seed(5)
    batches = list(loader.batch_sampler or loader.sampler)
    torch.manual_seed(5)
    assert batches == draw_stratified(dataset.age.flatten(), [3, 2, 2])


def test_one_site_trains_the_same_weights_as_none(sites, tmp_path):
    weights = []
    for site in ([], ["--site", "oslo"]):
        flags = [
            *("--train_folder", str(sites / "oslo" / "train"), "--val_folder"),
            *(str(sites / "oslo" / "val"), "--labels", str(sites / "oslo.csv"), *site),
            *("--output_dir", str(tmp_path / f"run{len(site)}"), "--any_grid", "--device", "cpu"),
            *("--epochs", "1", "--batch_size", "4"),
        ]
        weights.append(torch.load(train_first_stage.main(flags), weights_only=True)["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_training_logs_the_validation_error_of_each_site(trained):
    lines = (trained.parent / "metrics.jsonl").read_text().splitlines()
    values = json.loads(lines[-1])
    errors = [values[f"validation/mae_site_{site}"] for site in SITES]
    assert np.mean(errors) == pytest.approx(values["validation/mae"], abs=1e-4)
    logged = b"".join(path.read_bytes() for path in (trained.parent / "tensorboard").iterdir())
    assert b"validation/mae_site_lyon" in logged


def test_a_run_whose_scans_have_changed_their_site_is_not_resumed(sites, trained):
    flags = training_flags(sites, trained.parent, "--resume")
    flags[flags.index("--site") + 1] = "bern"
    with pytest.raises(ValueError, match="oslo-train0: site was oslo, is bern"):
        train_first_stage.main(flags)


def test_ages_are_judged_by_site(sites, trained, tmp_path, capsys):
    flags = ["--test_folder", *folders(sites, "val"), "--model_name", str(trained)]
    flags += ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    report = test.main([*flags, *sheets(sites)])
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())["predicted_age"]
    assert report["predicted_age"]["site lyon"]["n"] == figures["site oslo"]["n"] == 3
    errors = [figures[f"site {site}"]["mae"]["value"] for site in SITES]
    assert np.mean(errors) == pytest.approx(figures["overall"]["mae"]["value"])
    assert "\nsite lyon " in capsys.readouterr().out
    with (tmp_path / "out" / "predictions.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["site"] for row in rows] == ["oslo"] * 3 + ["lyon"] * 3


def test_people_are_dealt_within_sites():
    generator = np.random.default_rng(0)
    site_of = {f"p{i}": "ABC"[(i > 60) + (i > 90)] for i in range(101)}
    people = {name: (float(generator.uniform(18, 90)), i % 2) for i, name in enumerate(site_of)}
    dealt = deal_to_folds(people, folds=5, site_of=site_of)
    for site in "ABC":
        inside = [name for name in people if site_of[name] == site]
        counts = np.bincount([dealt[name] for name in inside], minlength=5)
        assert counts.max() - counts.min() <= 1
        ages = np.array([people[name][0] for name in inside])
        folds = np.array([dealt[name] for name in inside])
        if site == "A":
            assert all(abs(ages[folds == k].mean() - ages.mean()) < 8 for k in range(5))
    sizes = np.bincount(list(dealt.values()))
    assert sizes.max() - sizes.min() <= 1
    one = deal_to_folds(people, folds=5, site_of=dict.fromkeys(people, "A"))
    assert one == deal_to_folds(people, folds=5)


def make(sites, output, *more):
    flags = ["--scan_folders", *folders(sites, "train"), *folders(sites, "val")]
    return make_folds.main([*flags, *more, "--output", str(output)])


def test_folds_have_their_share_of_each_site_or_are_a_site_each(sites, tmp_path, capsys):
    folds = make(sites, tmp_path / "within.csv", *sheets(sites), "--number", "3")
    for fold in range(3):
        inside = [scan for scan in folds if folds[scan] == fold]
        assert sorted(scan.split("-")[0] for scan in inside) == ["lyon"] * 3 + ["oslo"] * 3
    assert "; 3 of site lyon, 3 of site oslo" in capsys.readouterr().out
    folds = make(sites, tmp_path / "whole.csv", *sheets(sites), "--hold_out", "site")
    assert {(scan.split("-")[0], fold) for scan, fold in folds.items()} == {
        ("lyon", 0),
        ("oslo", 1),
    }


def test_sites_that_cannot_be_held_out_are_refused(sites, tmp_path):
    hold_out = ("--hold_out", "site")
    with pytest.raises(ValueError, match="oslo-train0: no site; a column site, or --site expected"):
        make(sites, tmp_path / "a.csv", *sheets(sites)[:3], *hold_out)
    labels = ["--labels", str(sites / "lyon.csv")]
    flags = ["--scan_folders", str(sites / "lyon" / "train"), *labels, *hold_out]
    with pytest.raises(ValueError, match="all scans are of lyon, several sites expected"):
        make_folds.main([*flags, "--output", str(tmp_path / "b.csv")])
    with pytest.raises(ValueError, match="a scan of train0 at lyon, others are at oslo"):
        make(sites, tmp_path / "c.csv", *sheets(sites), *hold_out, "--subject_pattern", r"(\w+)$")


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [[], ["--hold_out", "site"]])
def test_the_script_cross_validates_over_sites(held_out, sites, tmp_path):
    make(sites, tmp_path / "folds.csv", *sheets(sites), "--number", "2", *held_out)
    known = {"TSAN_DATA": str(sites), "SITES": " ".join(SITES), "RUNS": str(tmp_path / "cv")}
    known |= {"FOLDS": str(tmp_path / "folds.csv"), "LABELS": str(tmp_path / "both.csv")}
    lines = ["name,age,sex,site"]
    for site in SITES:
        rows = (sites / f"{site}.csv").read_text().splitlines()[1:]
        lines += [",".join([*row.split(",")[:3], site]) for row in rows]
    (tmp_path / "both.csv").write_text("\n".join(lines) + "\n")
    flags = ["--any_grid", "--epochs", "1", "--batch_size", "4", "--device", "cpu"]
    done = subprocess.run(
        ["bash", str(ROOT / "script" / "cross_validate.sh"), *flags],
        env=os.environ | known | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\nsite lyon " in done.stdout
    with (tmp_path / "cv" / "default.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert all(row["site"] == row["participant_id"].split("-")[0] for row in rows)
    pairs = {(row["site"], row["fold"]) for row in rows}
    assert len(pairs) == (2 if held_out else 4)
