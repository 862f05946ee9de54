"""predict.py from scans to table, records and exit codes, on generated brains."""

import csv
import errno
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import brain, write_scan
from synthetic_head import PAD, make_head, rotation

import predict
import test
from data_preprocessing.pipeline.inputs import find_sources
from model.scaledense import ScaleDense
from model.tsan import TSAN, SecondStage
from prediction import records
from prediction.items import find_items
from prediction.people import read_people
from prediction.records import flag_age
from utils.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from utils.scans import volumes
from utils.scans.provenance import Provenance
from utils.scans.template import load_template
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, InputRule, decode, find_scans

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of both stages for cropped scans at 4 mm, which take little time; not trained."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    first = ScaleDense("compact", mean_age=50.0, age_spread=20.0).eval()
    models = {"first": first, "second": TSAN(first, SecondStage("compact")).eval()}
    for stage, model in models.items():
        save_checkpoint(
            Checkpoint(
                model,
                InputRule(4, crop=True),
                provenance=Provenance("affine", "subject"),
                summary={"training_ages": [0.0, 120.0]},
            ),
            folder / f"{stage}.pt",
        )
    return {stage: folder / f"{stage}.pt" for stage in models}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Starting a worker takes longer than what it does here."""
    monkeypatch.setattr("prediction.records.jobs_that_fit", lambda asked, scans: 1)


def table_of(folder):
    with (folder / "predictions.tsv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def run(networks, output, *inputs, flags=()):
    network = ("--model_name", str(networks["second"]), "--device", "cpu", "--no-report")
    return predict.main([*map(str, inputs), "--output_dir", str(output), *network, *flags])


def note_predictions(monkeypatch) -> list[Path]:
    """A list that gets the path of every scan that is predicted from now on."""
    asked, original = [], records.predict_one

    def noted(item, prepared, request):
        asked.append(item.source.path)
        return original(item, prepared, request)

    monkeypatch.setattr(records, "predict_one", noted)
    return asked


@pytest.fixture
def scans(grid_cohort, tmp_path):
    """A folder of three scans on the grid, and its label sheet."""
    folder = tmp_path / "scans"
    shutil.copytree(grid_cohort / "test", folder)
    shutil.copy(grid_cohort / "labels.csv", tmp_path / "labels.csv")
    return folder


@pytest.fixture(scope="session")
def first_call(networks, grid_cohort, tmp_path_factory):
    """scans/, labels.csv, and out/ with the results of a call with labels."""
    folder = tmp_path_factory.mktemp("first_call")
    shutil.copytree(grid_cohort / "test", folder / "scans")
    shutil.copy(grid_cohort / "labels.csv", folder)
    flags = ("--labels", str(folder / "labels.csv"), "--csv")
    assert run(networks, folder / "out", folder / "scans", flags=flags) == 0
    return folder


@pytest.fixture
def predicted(first_call, tmp_path):
    """The scans of a first call, and a copy of its results."""
    return first_call / "scans", shutil.copytree(first_call / "out", tmp_path / "out")


def test_ages_are_those_of_test_py_and_every_scan_has_a_row_and_a_record(
    networks, first_call, tmp_path
):
    output, labels = first_call / "out", str(first_call / "labels.csv")
    test.main(
        [
            *("--test_folder", str(first_call / "scans"), "--labels", labels, "--device", "cpu"),
            *("--output_dir", str(tmp_path / "test"), "--model_name", str(networks["second"])),
        ]
    )
    expected = table_of(tmp_path / "test")
    rows = table_of(output)
    assert [row["participant_id"] for row in rows] == [row["participant_id"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["status"] == "ok"
        assert row["sex"] == other["sex"]
        for name in ("age", "stage_one_age", "predicted_age", "brain_pad"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=0.011), name
        record = output / "scans" / f"{row['participant_id']}_brainage.json"
        found = json.loads(record.read_text())
        assert found["ages"]["predicted_age"] == pytest.approx(
            float(row["predicted_age"]), abs=0.006
        )
        assert (output / found["picture"]).is_file()
    assert (output / "predictions.csv").is_file()


def test_each_scan_is_decoded_once_for_quality_picture_ages_and_hash(
    networks, scans, tmp_path, monkeypatch
):
    opened, read = Counter(), Counter()
    open_image, read_voxels = volumes.open_image, volumes.read_voxels

    def noted_opening(path):
        opened[path] += 1
        return open_image(path)

    def noted_reading(image):
        read[image.get_filename()] += 1
        return read_voxels(image)

    monkeypatch.setattr(volumes, "open_image", noted_opening)
    monkeypatch.setattr(volumes, "read_voxels", noted_reading)
    assert run(networks, tmp_path / "out", scans) == 0
    files = find_scans(scans)
    assert read == dict.fromkeys(map(str, files), 1)
    # To see whether it lies on the grid, to find its axis order, and to read it.
    assert opened.total() <= 3 * len(files)


def test_a_bad_scan_costs_its_own_row_alone_and_is_done_again_when_mended(
    networks, scans, tmp_path, monkeypatch
):
    first, second, third = find_scans(scans)
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    assert run(networks, tmp_path / "out", scans) == 3
    rows = table_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert str(second) in rows[1]["message"]
    assert rows[1]["predicted_age"] == rows[1]["qc_flag"] == "n/a"

    second.write_bytes(whole)
    asked = note_predictions(monkeypatch)
    assert run(networks, tmp_path / "out", scans) == 0
    assert asked == [second]
    again = table_of(tmp_path / "out")
    assert [row["status"] for row in again] == ["ok"] * 3
    assert [again[0], again[2]] == [rows[0], rows[2]]
    assert run(networks, tmp_path / "out", scans) == 0
    assert asked == [second]
    # Without a sheet the sex is unknown, which the rows say.
    assert all("sex unknown" in row["message"] for row in again)
    assert {first, third} == set(map(Path, (again[0]["scan"], again[2]["scan"])))


def test_another_sex_is_predicted_anew_and_another_age_is_not(
    networks, scans, tmp_path, monkeypatch
):
    sheet = tmp_path / "mine.csv"
    names = [path.name for path in find_scans(scans)]

    def labelled(*lines):
        sheet.write_text(
            "\n".join(f"{name},{line}" for name, line in zip(names, lines, strict=True))
        )
        return ("--labels", str(sheet))

    run(networks, tmp_path / "out", scans, flags=labelled("50,0", "60,1", "70,0"))
    asked = note_predictions(monkeypatch)
    run(networks, tmp_path / "out", scans, flags=labelled("50,1", "61,1", "70,0"))
    assert [path.name for path in asked] == names[:1]
    assert [row["age"] for row in table_of(tmp_path / "out")] == ["50", "61", "70"]


def test_sheets_of_several_sites_and_a_site_for_the_rest(networks, scans, tmp_path):
    names = [path.name for path in find_scans(scans)]
    (tmp_path / "a.csv").write_text(f"name,age,sex,site\n{names[0]},31,0,oslo\n")
    (tmp_path / "b.csv").write_text(f"name,age,sex\n{names[1]},62,1\n")
    flags = ("--labels", str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--site", "graz")
    run(networks, tmp_path / "out", scans, flags=flags)
    rows = table_of(tmp_path / "out")
    assert [row["age"] for row in rows] == ["31", "62", "n/a"]
    assert [row["site"] for row in rows] == ["oslo", "graz", "graz"]


def test_results_of_other_scans_networks_or_contents_are_not_replaced(
    networks, predicted, tmp_path
):
    scans, output = predicted
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    other = write_scan(tmp_path / "more" / "x.nii.gz", brain(GRID_SHAPE, 40))
    with pytest.raises(FileExistsError, match=r"3 rows of scans that are not in this call"):
        run(networks, output, other)
    with pytest.raises(ValueError, match=r"of another prediction .*model"):
        run({"second": networks["first"]}, output, scans)
    with pytest.raises(ValueError, match="asked auto, now grid"):
        run(networks, output, scans, flags=("--contents", "grid"))
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    flags = ("--overwrite",)
    assert run({"second": networks["first"]}, output, scans, flags=flags) == 0
    assert table_of(output)[0]["model"].startswith("first ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "not a record of a prediction"), ("sha", "of another prediction .*source_sha256")],
)
def test_a_record_that_is_damaged_or_of_another_file_is_named(
    networks, predicted, content, problem
):
    scans, output = predicted
    record = next((output / "scans").glob("*_brainage.json"))
    if content == "sha":
        content = record.read_text().replace('"source_sha256": "', '"source_sha256": "0')
    record.write_text(content)
    with pytest.raises(ValueError, match=rf"{record.name}: {problem}"):
        run(networks, output, scans)


def test_a_bids_dataset_brings_its_participants_and_gets_derivatives(
    networks, grid_cohort, tmp_path
):
    names = ("sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-01/ses-2/anat/sub-01_ses-2_T1w",
             "sub-02/anat/sub-02_T1w", "sub-03/anat/sub-03_T1w")  # fmt: skip
    people = "participant_id\tage\tsex\tsite\nsub-01\t61,5\tfemale\tA\nsub-02\t89+\tM\tB\n"
    data = bids_dataset(
        tmp_path / "bids",
        find_scans(grid_cohort / "test")[0],
        people + "sub-03\tn/a\tn/a\tA\n",
        names,
    )
    output = tmp_path / "derivatives"
    assert run(networks, output, data) == 0
    rows = table_of(output)
    assert [(row["participant_id"], row["session_id"]) for row in rows] == [
        ("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", "n/a"), ("sub-03", "n/a"),
    ]  # fmt: skip
    assert [row["age"] for row in rows] == ["61.50", "n/a", "n/a", "n/a"]  # ses-2 was later
    assert [row["sex"] for row in rows] == ["F", "F", "M", "n/a"]
    assert [row["site"] for row in rows] == ["A", "A", "B", "A"]
    assert [row["label_source"] for row in rows] == ["participants.tsv"] * 4
    assert rows[2]["brain_pad"] == "n/a"
    name = "sub-01_ses-2_space-MNI152NLin6Asym_res-2_desc-brain_T1w_brainage.json"
    assert (output / "sub-01" / "ses-2" / "anat" / name).is_file()
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    some = tmp_path / "some"
    assert run(networks, some, data, flags=("--participant_label", "02", "sub-03")) == 0
    assert [row["participant_id"] for row in table_of(some)] == ["sub-02", "sub-03"]


def test_a_twin_of_the_grid_in_other_axis_order_gets_the_same_age(networks, scans, tmp_path):
    (path, *_) = find_scans(scans)
    twin = nibabel.as_closest_canonical(nibabel.load(path))
    assert not np.allclose(twin.affine, GRID_AFFINE)
    (tmp_path / "twin").mkdir()
    nibabel.save(twin, tmp_path / "twin" / "twin.nii.gz")
    assert run(networks, tmp_path / "out", path, tmp_path / "twin") == 0
    ours, theirs = table_of(tmp_path / "out")
    assert ours["predicted_age"] == theirs["predicted_age"]
    assert ours["qc_flag"] == theirs["qc_flag"]


def test_exit_codes_of_a_run_that_fails_and_of_wrong_usage(tmp_path):
    def code(*flags):
        done = subprocess.run(
            [sys.executable, str(ROOT / "predict.py"), *flags],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    status, said = code("nowhere", "--output_dir", "out")
    assert (status, said.count("\n")) == (1, 1)
    assert "error: nowhere: no such file or folder" in said
    assert code("--output_dir", "out")[0] == 2
    assert code("a", "--output_dir", "out", "--contents", "foot")[0] == 2
    assert not (tmp_path / "out").exists()


def test_ages_beyond_those_of_the_training_are_flagged():
    trained = [20.0, 80.0]
    assert not flag_age({"age": 80.0, "predicted_age": 95.0}, trained)
    assert (
        "age 81, trained on 20 to 80"
        in flag_age({"age": 81.0, "predicted_age": 70.0}, trained)["outside_training_ages"]
    )
    assert (
        "predicted age 12"
        in flag_age({"age": None, "predicted_age": 12.0}, trained)["outside_training_ages"]
    )
    assert not flag_age({"age": None, "predicted_age": None}, trained)
    assert not flag_age({"age": 99.0, "predicted_age": 12.0}, None)


def test_the_report_has_every_scan_with_its_picture_and_its_saliency(networks, scans, tmp_path):
    output = tmp_path / "out"
    flags = ("--report", "--saliency", "--labels", str(tmp_path / "labels.csv"))
    assert run(networks, output, scans, flags=flags) == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    for row in table_of(output):
        assert row["participant_id"] in page
        assert (output / "scans" / f"{row['participant_id']}_saliency.png").is_file()
    assert page.count("data:image/png;base64,") >= 6
    assert "predict.py" in page


@pytest.mark.parametrize("surroundings", ["a head", "a background"])
def test_what_is_more_than_a_brain_on_the_grid_is_predicted_as_it_is_only_if_asked(
    networks, scans, tmp_path, surroundings
):
    # A network that does not say how its scans were made: nothing can be made like them.
    unknown = replace(load_checkpoint(networks["second"]), provenance=Provenance())
    save_checkpoint(unknown, tmp_path / "unknown.pt")
    networks = {"second": tmp_path / "unknown.pt"}
    first, *_ = find_scans(scans)
    inside = decode(first)
    head = np.asarray(make_head().dataobj)[(slice(PAD, -PAD),) * 3]
    around = head if surroundings == "a head" else np.float32(0.01)
    write_scan(first, np.where(inside > 0, inside, around))
    assert run(networks, tmp_path / "out", scans) == 3
    refused, *others = table_of(tmp_path / "out")
    assert {row["status"] for row in others} == {"ok"}
    assert "skull or background left on" in refused["message"]
    assert "--contents grid to predict it as it is" in refused["message"]
    assert run(networks, tmp_path / "grid", scans, flags=("--contents", "grid")) == 0
    assert table_of(tmp_path / "grid")[0]["status"] == "ok"


@pytest.mark.slow
@pytest.mark.engines
def test_heads_brains_and_scans_on_the_grid_go_together(tmp_path):
    make_head().to_filename(tmp_path / "head.nii.gz")
    make_head(stripped=True, placed=rotation(15, 0)).to_filename(tmp_path / "brain.nii.gz")
    template = load_template().brain
    write_scan(tmp_path / "ready.nii.gz", template + 5 * (template > 0))
    output = tmp_path / "out"
    on_grid = np.asarray(make_head().dataobj)[(slice(PAD, -PAD),) * 3]
    write_scan(tmp_path / "head-on-grid.nii.gz", on_grid)
    inputs = [tmp_path / f"{name}.nii.gz" for name in ("head", "brain", "ready", "head-on-grid")]
    # By the shipped networks: ages of an untrained one mean nothing.
    flags = ("--output_dir", str(output), "--device", "cpu", "--no-report")
    assert predict.main([*map(str, inputs), *flags]) == 0
    rows = {row["participant_id"]: row for row in table_of(output)}
    records = {
        name: json.loads((output / "scans" / f"{name}_brainage.json").read_text()) for name in rows
    }
    assert {name: record["contents"] for name, record in records.items()} == {
        "brain": "brain", "head": "head", "ready": "grid", "head-on-grid": "head",
    }  # fmt: skip
    assert {row["qc_flag"] for row in rows.values()} == {"ok"}
    ages = {name: float(row["predicted_age"]) for name, row in rows.items()}
    assert abs(ages["brain"] - ages["ready"]) < 3  # one brain in two forms
    # Extraction leaves another rim than the mask that made the synthetic brain: 3.9 when measured.
    assert abs(ages["head"] - ages["ready"]) < 5
    assert abs(ages["head"] - ages["head-on-grid"]) < 1
    assert "skull or background left on: preprocessed" in rows["head-on-grid"]["message"]
    made = json.loads((output / "scans" / "head.json").read_text())
    assert made["recipe"] | {"contents": "auto"} == {
        "backend": "builtin", "registration": "affine", "mask": "subject", "contents": "auto",
    }  # fmt: skip
    assert not (output / "scans" / "ready.nii.gz").exists()


def bids_dataset(folder, scan, people, names=("sub-01/anat/sub-01_T1w",)):
    """A dataset of copies of one scan, with a participants.tsv of these lines."""
    for name in names:
        target = folder / f"{name}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scan, target)
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (folder / "participants.tsv").write_text(people)
    return folder


def found(*inputs, output, **options):
    inputs = [str(one) for one in inputs]
    sources = find_sources(inputs, output_dir=output)
    people = read_people(options.pop("sheets", None), inputs, sources, None)
    return find_items(sources, people, output_dir=output, **options)


def test_people_of_two_datasets_keep_their_own_ages(scans, tmp_path):
    scan = find_scans(scans)[0]
    first = bids_dataset(tmp_path / "A", scan, "participant_id\tage\nsub-01\t20\n")
    second = bids_dataset(tmp_path / "B", scan, "participant_id\tage\nsub-01\t80\n")
    (tmp_path / "C").mkdir()
    loose = shutil.copy(scan, tmp_path / "C" / "sub-01_T1w.nii.gz")
    items = found(first, second, loose, output=tmp_path / "out")
    ages = {item.source.path.parts[-4]: item.label and item.label.age for item in items[:2]}
    assert ages == {"A": 20.0, "B": 80.0}
    assert items[2].label is None
    assert {item.participant for item in items} == {"sub-01"}
    assert len({item.source.name.lower() for item in items}) == 3
    assert len(found(first, second, output=tmp_path / "out", participants=["01"])) == 2


def test_a_session_has_its_own_row_and_ages_may_be_missing(scans, tmp_path):
    scan = find_scans(scans)[0]
    names = [f"sub-01/ses-{number}/anat/sub-01_ses-{number}_T1w" for number in (1, 2)]
    data = bids_dataset(tmp_path / "data", scan, "participant_id\tsex\nsub-01\tF\n", names)
    assert [(item.sex, item.label.age) for item in found(data, output=tmp_path / "out")] == [
        (0, None), (0, None),
    ]  # fmt: skip
    sheet = tmp_path / "ages.csv"
    sheet.write_text("id,age\nsub-01,60\nsub-01_ses-2,62\n")
    items = found(data, output=tmp_path / "out", sheets=[str(sheet)])
    assert [item.label.age for item in items] == [60.0, 62.0]


def test_a_sessions_table_gives_each_session_its_age_and_leaves_the_rest_to_the_person(
    scans, tmp_path
):
    names = [f"sub-01/ses-{n}/anat/sub-01_ses-{n}_T1w" for n in (1, 2)]
    data = bids_dataset(
        tmp_path / "data", find_scans(scans)[0],
        "participant_id\tage\tsex\tsite\nsub-01\t30\tF\tA\n", names,
    )  # fmt: skip
    (data / "sub-01" / "sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\tage\nses-1\tn/a\tn/a\nses-2\tn/a\t33.5\n"
    )
    items = found(data, output=tmp_path / "out")
    assert [(item.session, item.label.age) for item in items] == [("ses-1", 30), ("ses-2", 33.5)]
    assert [(item.sex, item.label.site) for item in items] == [(0, "A")] * 2


def test_one_participant_of_a_dataset_brings_t1_alone_and_finds_its_row(scans, tmp_path):
    scan = find_scans(scans)[0]
    names = ["sub-01/anat/sub-01_T1w", "sub-01/anat/sub-01_T2w", "sub-02/anat/sub-02_T1w"]
    data = bids_dataset(tmp_path / "data", scan, "participant_id\tage\nsub-01\t44\n", names)
    (item,) = found(data / "sub-01", output=tmp_path / "out")
    assert (item.source.path.name, item.label.age) == ("sub-01_T1w.nii.gz", 44.0)


def test_a_wrong_cell_of_a_participants_table_is_unknown_and_said(scans, tmp_path, capsys):
    scan = find_scans(scans)[0]
    data = bids_dataset(
        tmp_path / "data", scan, "participant_id\tage\nsub-01\t50\nsub-02\tin May\n"
    )
    (item,) = found(data, output=tmp_path / "out")
    assert item.label.age == 50
    assert "in May" in capsys.readouterr().out
    with pytest.raises(ValueError, match="in May"):
        found(data, output=tmp_path / "out", sheets=[str(data / "participants.tsv")])


def test_files_of_one_name_are_known_by_the_folders_in_front(scans, tmp_path):
    scan = find_scans(scans)[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(scan, tmp_path / folder / "T1.nii.gz")
    sheet = tmp_path / "ages.csv"
    sheet.write_text("id,age\nT1,10\na_T1,30\n")
    items = found(tmp_path / "a", tmp_path / "b", output=tmp_path / "out", sheets=[str(sheet)])
    assert [item.label and item.label.age for item in items] == [30.0, None]


def test_two_files_never_share_a_result(scans, tmp_path):
    scan = find_scans(scans)[0]
    folder = tmp_path / "derived"
    folder.mkdir()
    for name in ("sub-01_T1w", "sub-01_desc-preproc_T1w", "sub-02_T1w"):
        shutil.copy(scan, folder / f"{name}.nii.gz")
    # By name: of the folder, a copy of sub-01 would be left out.
    names = [item.source.name for item in found(*find_scans(folder), output=tmp_path / "out")]
    assert len(set(names)) == 3
    assert sum(name.startswith("scans/") for name in names) == 2


def test_scans_are_never_in_the_output_folder(networks, scans, tmp_path):
    before = {path: path.read_bytes() for path in find_scans(scans)}
    for output in (scans, tmp_path):
        with pytest.raises(ValueError, match=r"in --output_dir|lies in"):
            run(networks, output, scans, flags=("--overwrite",))
    assert before == {path: path.read_bytes() for path in find_scans(scans)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.csv", "scans"]


def test_results_of_an_earlier_call_are_no_scans(predicted, tmp_path):
    scans, output = predicted
    shutil.copytree(output, tmp_path / "in" / "ages")
    shutil.copy(find_scans(scans)[0], tmp_path / "in" / "x.nii.gz")
    shutil.copy(find_scans(scans)[0], tmp_path / "in" / "ages" / "scans" / "y.nii.gz")
    items = found(tmp_path / "in", output=tmp_path / "elsewhere")
    assert [item.source.path.name for item in items] == ["x.nii.gz"]


def test_a_scan_that_is_gone_or_an_age_that_is_no_number_costs_its_row_alone(
    networks, scans, tmp_path, monkeypatch
):
    first, second, _ = find_scans(scans)
    original = records.predict_one

    def broken(item, prepared, request):
        if item.source.path == first:
            first.unlink()
        if item.source.path == second:
            prepared = replace(prepared, image=prepared.image * np.float32("nan"))
        return original(item, prepared, request)

    monkeypatch.setattr(records, "predict_one", broken)
    assert run(networks, tmp_path / "out", scans) == 3
    rows = table_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert first.name in rows[0]["message"]
    assert "no finite age" in rows[1]["message"]


def test_a_scan_under_several_names_is_said(networks, scans, tmp_path, capsys):
    first, second, _ = find_scans(scans)
    second.unlink()
    second.symlink_to(first)
    copy = shutil.copy(first, scans / "copy of it.nii.gz")
    assert run(networks, tmp_path / "out", scans) == 0
    assert f"each a row of the table: {copy} = {first} = {second}\n" in capsys.readouterr().out
    assert len(table_of(tmp_path / "out")) == 4


@pytest.mark.engines  # what cannot be read may be a head
def test_a_record_that_cannot_be_written_costs_its_row_alone(
    networks, scans, tmp_path, monkeypatch
):
    write = records.write_json

    def write_but_one(path, content, **options):
        if path.name.startswith(find_scans(scans)[0].name.partition(".")[0]):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content, **options)

    monkeypatch.setattr(records, "write_json", write_but_one)
    output = tmp_path / "out"
    assert run(networks, output, scans) == 3
    first, *others = table_of(output)
    assert (first["status"], first["predicted_age"]) == ("failed", "n/a")
    assert "No space left" in first["message"]
    assert {row["status"] for row in others} == {"ok"}
    monkeypatch.undo()
    assert run(networks, output, scans) == 0
    assert {row["status"] for row in table_of(output)} == {"ok"}


def test_a_link_to_nowhere_costs_its_row_alone(networks, scans, tmp_path):
    first, *others = find_scans(scans)
    first.unlink()
    first.symlink_to(tmp_path / "nowhere.nii.gz")
    others.pop().unlink()
    (scans / "failed.anat").mkdir()
    assert run(networks, tmp_path / "out", scans) == 3
    rows = table_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert "failed.anat" in rows[0]["message"]


def test_json_files_of_others_beside_scans_cost_no_scan_its_age(networks, scans, tmp_path, capsys):
    folder = tmp_path / "given"
    folder.mkdir()
    contents = (b'{"Operator": "Zo\xeb"}', b'\xef\xbb\xbf{"a": 1}', b'{"a": 1,}', b"", b'{"a": 1}')
    for number, content in enumerate(contents):
        shutil.copy(find_scans(scans)[0], folder / f"p{number}.nii.gz")
        (folder / f"p{number}.json").write_bytes(content)
    assert run(networks, tmp_path / "out", folder) == 0
    rows = table_of(tmp_path / "out")
    assert len(rows) == 5
    assert all(row["predicted_age"] for row in rows)
    assert all("no record of how it was preprocessed" in row["message"] for row in rows)
    said = capsys.readouterr().out
    assert "note: 3 .json files beside scans cannot be read" in said
    assert f"the first is {folder / 'p0.json'}" in said
