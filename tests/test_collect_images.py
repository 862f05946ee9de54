"""Images gathered out of the folders of fsl_anat."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import UNDECODABLE, needs_any_name, write_scan

from data_preprocessing import collect_images
from data_preprocessing.collect_images import find_anat_folders, name_scans
from utils.files import image_stem
from utils.scans.provenance import Provenance, read_sidecar
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, find_scans

FILES = ("T1_to_MNI_lin", "T1_to_MNI_nonlin", "T1_to_MNI_nonlin_brain")


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """The bytes of one image on the grid, compressed once."""
    volume = np.zeros(GRID_SHAPE, dtype=np.float32)
    volume[20:70, 20:90, 20:70] = np.arange(50)[:, None, None] + 1
    return write_scan(tmp_path_factory.mktemp("image") / "a.nii.gz", volume).read_bytes()


def make_anat(folder, image=b"", files=FILES):
    folder.mkdir(parents=True)
    for index, name in enumerate(files):
        # Trailing bytes after the gzip stream are not read: files differ, images do not.
        (folder / f"{name}.nii.gz").write_bytes(image + bytes(index))
    return folder


def names_of(root, paths, given=None):
    for path in paths:
        make_anat(root / path, files=())
    folders = [root] if given is None else [root / name for name in given]
    named = name_scans(find_anat_folders(folders))
    return {str(one.folder.relative_to(root)): name for name, one in named.items()}


@pytest.mark.parametrize(
    "names, given",
    [
        ({"sub-01.anat": "sub-01", "sub-02.anat": "sub-02"}, None),
        # fsl_anat's own way, and with the published loop, which cuts names to seven letters.
        ({"sub-000/sub-0001.anat": "sub-0001", "sub-000/sub-0002.anat": "sub-0002"}, None),
        ({"sub-01/T1.anat": "sub-01", "sub-02/T1.anat": "sub-02"}, None),
        ({"sub-01/T1.anat": "sub-01"}, None),
        ({"sub-01/anat/T1w.anat": "sub-01", "sub-02/anat/T1w.anat": "sub-02"}, None),
        ({"sub-01/anat/sub-01_T1w.anat": "sub-01_T1w"}, None),
        ({"sub-1/ses-1/T1.anat": "sub-1_ses-1", "sub-1/ses-2/T1.anat": "sub-1_ses-2"}, None),
        ({"sub-01/T1.anat": "sub-01", "sub-02/ses-1/T1.anat": "sub-02_ses-1"}, None),
        ({"sub-01/T1.anat": "sub-01", "sub-02/struct.anat": "sub-02"}, None),
        ({"OAS30001/MR_d0129/T1.anat": "OAS30001_MR_d0129"}, None),
        ({"sub-01/T1.anat": "X_sub-01_T1", "sub-01/mprage.anat": "X_sub-01_mprage"}, None),
        ({"a/sub-01/T1.anat": "a_sub-01", "b/sub-01/T1.anat": "b_sub-01"}, ["a", "b"]),
        ({"a/sub-01.anat": "a_sub-01", "b/sub-01.anat": "b_sub-01"}, ["a", "b"]),
        ({"sub-01/T1.anat": "sub-01", "sub-02/T1.anat": "sub-02"}, ["sub-01", "sub-02"]),
        ({"sub-01/ses-1/T1.anat": "sub-01_ses-1"}, ["sub-01"]),
        ({"sub-01/T1.anat": "sub-01"}, ["sub-01/T1.anat"]),
        ({"sub-01/ses-1/T1.anat": "sub-01_ses-1"}, ["sub-01/ses-1/T1.anat"]),
        ({"A.anat": "X_A", "a/T1.anat": "X_a_T1"}, None),
        ({"Jürgen's scan.anat": "Jürgen's scan", "two words.anat": "two words"}, None),
    ],
)
def test_folders_are_named_after_what_tells_people_apart(tmp_path, names, given):
    found = names_of(tmp_path / "X", names, given)
    assert found == names


@pytest.mark.parametrize("seed", range(5))
def test_no_two_folders_share_a_name(tmp_path, seed):
    rng = np.random.default_rng(seed)
    parts = ["T1", "anat", "sub-1", "sub-1_T1", "SUB-1", "1", "ses-1", "a_b", "a", "b"]
    paths = {
        "/".join(str(part) for part in rng.choice(parts, size=rng.integers(1, 4))) + ".anat"
        for _ in range(30)
    }
    try:
        found = names_of(tmp_path / "X", paths)
    except ValueError as error:
        assert "do not tell them apart" in str(error)
    else:
        assert len({name.lower() for name in found.values()}) == len(paths)


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match="do not tell them apart"):
        names_of(tmp_path, ["a_b/c.anat", "a/b_c.anat", "a/b/c.anat"])


def test_a_folder_reached_twice_is_one(tmp_path):
    make_anat(tmp_path / "sub-01" / "T1.anat", files=())
    (tmp_path / "link.anat").symlink_to(tmp_path / "sub-01" / "T1.anat")
    found = find_anat_folders([tmp_path, tmp_path / "sub-01", tmp_path])
    assert len(found) == 1


def test_folders_without_any_are_all_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no \.anat.*\n.*missing: no such"):
        find_anat_folders([tmp_path / "empty", tmp_path / "missing"])


def collect(folder, output_dir, *flags):
    collect_images.main(["--folders", str(folder), "--output_dir", str(output_dir), *flags])
    return output_dir


@pytest.fixture
def two_people(tmp_path, image):
    for person in ("sub-01", "sub-02"):
        make_anat(tmp_path / "processed" / person / "T1.anat", image)
    return tmp_path / "processed"


@pytest.mark.parametrize("write", ["links", "copies"])
@pytest.mark.parametrize(
    "kind, file, registration, mask",
    [
        ("linear", FILES[0], "affine", "none"),
        ("nonlinear", FILES[1], "deformable", "none"),
        ("nonlinear_brain", FILES[2], "deformable", "template"),
    ],
)
def test_the_chosen_image_of_each_is_gathered_with_its_record(
    two_people, tmp_path, write, kind, file, registration, mask
):
    before = {path: path.read_bytes() for path in two_people.rglob("*") if path.is_file()}
    out = collect(two_people, tmp_path / "out", "--image", kind, "--write", write)
    scans = find_scans(out)
    assert [image_stem(scan.name) for scan in scans] == ["sub-01", "sub-02"]
    for scan in scans:
        source = two_people / image_stem(scan.name) / "T1.anat" / f"{file}.nii.gz"
        assert scan.read_bytes() == source.read_bytes()
        assert scan.is_symlink() == (write == "links")
        record = json.loads((out / f"{image_stem(scan.name)}.json").read_text())
        assert record["format"] == "tsan-preprocessing-1"
        assert record["source"] == str(source)
        made = Provenance.from_sidecar(read_sidecar(scan))
        assert (made.backend, made.registration, made.mask) == ("fsl", registration, mask)
    with (out / "collected.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert [(row["scan"], row["image"]) for row in rows] == [(scan.name, kind) for scan in scans]
    assert all(Path(row["source"]).is_file() for row in rows)
    assert {path: path.read_bytes() for path in before} == before


def test_brains_are_what_is_gathered_unless_said_otherwise(two_people, tmp_path, capsys):
    out = collect(two_people, tmp_path / "brains")
    assert (out / "sub-01.nii.gz").resolve().name == "T1_to_MNI_nonlin_brain.nii.gz"
    assert "whole head" not in capsys.readouterr().out
    collect(two_people, tmp_path / "heads", "--image", "linear")
    assert "whole head, not a brain" in capsys.readouterr().out


def test_links_hold_from_wherever_they_were_made(two_people, tmp_path, monkeypatch):
    monkeypatch.chdir(two_people.parent)
    collect(two_people.name, "out")
    monkeypatch.chdir("/")
    assert (tmp_path / "out" / "sub-01.nii.gz").is_file()


@needs_any_name
def test_a_name_that_is_not_utf8_is_gathered_like_any_other(tmp_path, image):
    make_anat(tmp_path / "in" / f"{UNDECODABLE}.anat", image)
    out = collect(tmp_path / "in", tmp_path / "out")
    (scan,) = find_scans(out)
    assert scan.name == f"{UNDECODABLE}.nii.gz"
    assert scan.is_file()
    source = json.loads((out / f"{UNDECODABLE}.json").read_text())["source"]
    assert Path(source).parent == tmp_path / "in" / f"{UNDECODABLE}.anat"
    assert r"caf\udce9.nii.gz" in (out / "collected.tsv").read_text(encoding="utf-8")


def test_nothing_is_overwritten(two_people, tmp_path):
    out = collect(two_people, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FileExistsError, match="not empty"):
        collect(two_people, out, "--image", "linear")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_uncompressed_images_keep_their_suffix(tmp_path):
    volume = np.zeros(GRID_SHAPE, dtype=np.uint8)
    volume[30:60, 30:60, 30:60] = np.arange(30)
    write_scan(tmp_path / "in/sub-01.anat/T1_to_MNI_nonlin_brain.nii", volume)
    out = collect(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in find_scans(out)] == ["sub-01.nii"]


def test_all_problems_are_said_at_once_and_nothing_is_written(tmp_path, image):
    root = tmp_path / "in"
    make_anat(root / "good.anat", image)
    make_anat(root / "missing.anat", image, files=("T1_to_MNI_lin",))
    make_anat(root / "short.anat", image[: len(image) // 2])
    make_anat(root / "text.anat", b"not an image")
    off = make_anat(root / "off.anat", files=())
    volume = np.ones(GRID_SHAPE, dtype=np.uint8)
    write_scan(off / "T1_to_MNI_nonlin_brain.nii.gz", volume, GRID_AFFINE + np.eye(4)[[3, 0, 1, 2]])
    empty = make_anat(root / "empty.anat", files=())
    write_scan(empty / "T1_to_MNI_nonlin_brain.nii.gz", 0 * volume)
    with pytest.raises(ValueError) as caught:
        collect(root, tmp_path / "out")
    lines = {Path(line.strip().split(":")[0]) for line in str(caught.value).split("\n")}
    found = {part for line in lines for part in line.parts if part.endswith(".anat")}
    assert found == {f"{name}.anat" for name in ("missing", "short", "text", "off", "empty")}
    assert not (tmp_path / "out").exists()


def test_a_brain_that_only_needs_warping_comes_with_the_command_for_it(tmp_path, image):
    stock = (*FILES[:2], "T1_biascorr_brain", "T1_to_MNI_nonlin_coeff")
    folder = make_anat(tmp_path / "my scans" / "sub-01.anat", image, stock)
    with pytest.raises(ValueError) as caught:
        collect(tmp_path / "my scans", tmp_path / "out")
    assert (
        "applywarp --ref=$FSLDIR/data/standard/MNI152_T1_2mm "
        f"--in='{folder}/T1_biascorr_brain' --warp='{folder}/T1_to_MNI_nonlin_coeff' "
        f"--out='{folder}/T1_to_MNI_nonlin_brain'"
    ) in str(caught.value)
    assert "segmented" not in str(caught.value)
    (folder / "T1_fast_pve_0.nii.gz").write_bytes(image)
    with pytest.raises(ValueError, match="segmented"):
        collect(tmp_path / "my scans", tmp_path / "out")
    collect(tmp_path / "my scans", tmp_path / "out", "--image", "nonlinear")


def test_a_brain_that_cannot_be_warped_any_more_is_to_be_made_again(tmp_path, image):
    make_anat(tmp_path / "in" / "sub-01.anat", image, FILES[:2])
    with pytest.raises(ValueError, match="preprocess the scan again"):
        collect(tmp_path / "in", tmp_path / "out")
