"""Files whose content lies elsewhere: pointers of git-annex and Git LFS, files in iCloud."""

from pathlib import Path

import pytest
from conftest import brain, write_scan

from data_preprocessing.pipeline.inputs import find_participant_tables, find_sources
from data_preprocessing.pipeline.native import read_native
from prediction.people import read_people
from utils.files import describe_pointer, hash_file
from utils.networks.checkpoint import load_checkpoint
from utils.people.labels import read_labels
from utils.scans.volumes import GRID_SHAPE, find_scans, open_scan
from utils.training.options import parse_first_stage
from utils.training.run import build_loss

KEY = "MD5E-s1024--d41d8cd98f00b204e9800998ecf8427e.nii.gz"


def locked(path):
    path.symlink_to(f"../../.git/annex/objects/X1/2Y/{KEY}/{KEY}")


def locked_without_links(path):
    path.write_text(f"../../.git/annex/objects/X1/2Y/{KEY}/{KEY}")


def unlocked(path):
    path.write_text(f"/annex/objects/{KEY}\n")


def of_lfs(path):
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
    )


def in_icloud(path):
    path.with_name(f".{path.name}.icloud").write_bytes(b"bplist00")


KINDS = {
    locked: "a pointer of git-annex, .*fetch the file .datalad get",
    locked_without_links: "a pointer of git-annex, .*fetch the file .datalad get",
    unlocked: "a pointer of git-annex, .*fetch the file .datalad get",
    of_lfs: "a pointer of Git LFS, .*fetch the file .git lfs pull",
    in_icloud: "in iCloud alone, .*fetch the file .in Finder",
}
every_kind = pytest.mark.parametrize(
    ("make", "message"), KINDS.items(), ids=[make.__name__ for make in KINDS]
)


@every_kind
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_a_scan_that_is_not_here_says_how_to_fetch_it(tmp_path, make, message, name):
    make(tmp_path / name)
    for read in (open_scan, read_native):
        with pytest.raises(ValueError, match=rf"a\.nii.*: {message}"):
            read(tmp_path / name)


@every_kind
@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.xlsx", "labels.xls"])
def test_a_sheet_that_is_not_here_says_how_to_fetch_it(tmp_path, make, message, name):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=rf"labels\..*: {message}"):
        read_labels(tmp_path / name)


@every_kind
def test_a_checkpoint_and_a_sorter_say_how_to_fetch_them(tmp_path, make, message):
    make(tmp_path / "net.pt")
    with pytest.raises(ValueError, match=rf"net\.pt: {message}"):
        load_checkpoint(tmp_path / "net.pt")
    folders = [f"--{name}_folder={tmp_path}" for name in ("train", "val")]
    args = parse_first_stage(
        [*folders, "--labels=x.csv", f"--output_dir={tmp_path}", f"--sorter={tmp_path / 'net.pt'}"]
    )
    with pytest.raises(ValueError, match=rf"net\.pt: {message}"):
        build_loss(args)


@every_kind
def test_a_scan_that_is_not_here_is_found_beside_others(tmp_path, make, message):
    write_scan(tmp_path / "b.nii.gz", brain((4, 4, 4), 50))
    make(tmp_path / "a.nii.gz")
    (tmp_path / ".DS_Store").touch()
    assert [scan.name for scan in find_scans(tmp_path)] == ["a.nii.gz", "b.nii.gz"]
    found = find_sources([tmp_path], output_dir=Path("results"))
    assert [source.name for source in found] == ["a", "b"]


@every_kind
def test_participants_that_are_not_here_are_said(tmp_path, make, message, capsys):
    make(tmp_path / "participants.tsv")
    write_scan(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii", brain((4, 4, 4), 50))
    assert find_participant_tables([tmp_path]) == [tmp_path / "participants.tsv"]
    sources = find_sources([tmp_path], output_dir=Path("results"))
    read_people(None, [str(tmp_path)], sources, None)
    said = capsys.readouterr().out
    assert "participants.tsv: " in said
    assert message.split(",")[0] in said


@every_kind
def test_a_dicom_folder_that_is_not_here_says_how_to_fetch_it(tmp_path, make, message):
    (tmp_path / "series").mkdir()
    make(tmp_path / "series" / "IM0001")
    with pytest.raises(ValueError, match=rf"nothing to preprocess.*folders of files, {message}"):
        find_sources([tmp_path], output_dir=Path("results"))


def test_files_that_are_here_are_no_pointers(tmp_path):
    scan = write_scan(tmp_path / "a.nii.gz", brain(GRID_SHAPE, 50))
    table = tmp_path / "labels.csv"
    table.write_text("participant_id,path\nsub-1,/data/.git/annex/objects/a\n")
    link = tmp_path / "link.nii.gz"
    link.symlink_to(scan)
    (tmp_path / "gone.nii.gz").symlink_to("nowhere.nii.gz")
    for path in (scan, table, link, tmp_path / "gone.nii.gz", tmp_path / "missing", tmp_path):
        assert describe_pointer(path) == ""
    assert hash_file(link) == hash_file(scan)
