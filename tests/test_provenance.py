import json

import pytest

from data_preprocessing.pipeline import recipe
from utils.scans.provenance import (
    FORMAT,
    UNKNOWN,
    Provenance,
    common_provenance,
    compare_provenance,
    format_comparison,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from utils.training.options import parse_first_stage

AFFINE = Provenance("affine", "template", "builtin")
DEFORMABLE = Provenance("deformable", "template", "builtin")
FSL = Provenance("deformable", "template", "fsl")


def scan(folder, name, made=None):
    """An empty file that stands for a scan, with a sidecar where it is said how it was made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.nii.gz"
    path.touch()
    if made:
        write_sidecar(path, {"recipe": vars(made) | {"contents": "auto"}, "qc": {"flags": []}})
    return path


def test_what_is_written_is_read_with_our_format(tmp_path):
    path = scan(tmp_path, "sub-1.5_T1w", AFFINE)
    assert sidecar_path(path) == tmp_path / "sub-1.5_T1w.json"
    sidecar = read_sidecar(path)
    assert sidecar["format"] == FORMAT
    assert sidecar["recipe"] == vars(AFFINE) | {"contents": "auto"}
    assert sidecar_path(tmp_path / "a.nii") == sidecar_path(tmp_path / "a.nii.gz")


def test_sidecars_are_overwritten_only_on_request(tmp_path):
    path = scan(tmp_path, "a", AFFINE)
    with pytest.raises(FileExistsError, match=r"a\.json would be overwritten"):
        write_sidecar(path, {"recipe": vars(FSL)})
    assert common_provenance([path]) == AFFINE
    write_sidecar(path, {"recipe": vars(FSL)}, overwrite=True)
    assert common_provenance([path]) == FSL


def test_numbers_that_json_lacks_are_refused_and_nothing_is_written(tmp_path):
    path = scan(tmp_path, "a")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_sidecar(path, {"qc": {"correlation": float("nan")}})
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize(
    "content", ['{"EchoTime": 0.003, "recipe": 1}', "[]", "3", '{"format": "tsan-preprocessing-9"}']
)
def test_a_json_of_others_beside_a_scan_means_unknown(tmp_path, content):
    path = scan(tmp_path, "sub-01_T1w")
    sidecar_path(path).write_text(content)
    assert read_sidecar(path) is None
    assert common_provenance([path]) == UNKNOWN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": "tsan', "not readable as JSON"),
        (b"", "not readable as JSON"),
        (b"\xff\xfe{", "not readable as JSON"),
        (json.dumps({"format": FORMAT}).encode(), "a recipe with registration, mask, backend"),
        (json.dumps({"format": FORMAT, "recipe": {"mask": 3}}).encode(), "found .'mask': 3."),
    ],
)
def test_damaged_sidecars_are_all_named(tmp_path, content, message):
    scans = [scan(tmp_path, name, AFFINE) for name in "abc"]
    for path in scans[1:]:
        sidecar_path(path).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)b\.json: .*{message}.*c\.json: .*{message}"):
        common_provenance(scans)


FOREIGN = {
    "latin-1": '{"EchoTime": 0.003, "Operator": "Zoë"}'.encode("latin-1"),
    "trailing comma": b'{"EchoTime": 0.003,}',
    "empty": b"",
    "cut": b'{"EchoTime": 0.0',
    "no JSON": b"EchoTime = 3 ms",
    "nested": b"[" * 100_000,
    "unknown": b'{"EchoTime": 0.003}',
    "byte order mark": b'\xef\xbb\xbf{"EchoTime": 0.003}',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_any_json_of_others_in_any_state_means_unknown(tmp_path, content):
    path = scan(tmp_path, "sub-01_T1w")
    sidecar_path(path).write_bytes(content)
    assert read_sidecar(path) is None
    assert common_provenance([path]) == UNKNOWN


def test_json_files_that_cannot_be_read_are_one_note_with_their_count(tmp_path, capsys):
    scans = [scan(tmp_path, f"sub-{n}") for n in range(len(FOREIGN) + 1)]
    for path, content in zip(scans, FOREIGN.values(), strict=False):
        sidecar_path(path).write_bytes(content)
    assert common_provenance(scans) == UNKNOWN
    said = capsys.readouterr().out
    assert said.count("note:") == 1
    assert "note: 6 .json files beside scans cannot be read and are not of this" in said
    assert f"the first is {sidecar_path(scans[0])} (" in said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_ours_is_read_in_the_encodings_of_windows(tmp_path, encoding):
    path = scan(tmp_path, "a", AFFINE)
    sidecar_path(path).write_text(sidecar_path(path).read_text(), encoding=encoding)
    assert common_provenance([path]) == AFFINE


@pytest.mark.parametrize("content", [b"", b"{", bytes(4096)])
@pytest.mark.parametrize("beside", ["preprocessing.html", "preprocessing_1_of_2.html", "a.png"])
def test_damage_in_an_output_folder_of_ours_is_no_stranger(tmp_path, content, beside):
    path = scan(tmp_path, "a")
    sidecar_path(path).write_bytes(content)
    (tmp_path / beside).touch()
    with pytest.raises(ValueError, match=r"a\.json: not readable as JSON"):
        common_provenance([path])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ours_that_is_cut_is_known_by_its_start(tmp_path, encoding):
    path = scan(tmp_path, "a", AFFINE)
    content = sidecar_path(path).read_text().encode(encoding)
    sidecar_path(path).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.json: not readable as JSON"):
        common_provenance([path])


def test_a_linked_scan_has_the_sidecar_of_what_it_points_at(tmp_path):
    stored = scan(tmp_path / "store", "0123abcd")
    original = tmp_path / "made" / "sub-1.nii.gz"
    original.parent.mkdir()
    original.symlink_to("../store/0123abcd.nii.gz")
    write_sidecar(original, {"recipe": vars(AFFINE)})
    fold = tmp_path / "folds" / "sub-1.nii.gz"
    fold.parent.mkdir()
    fold.symlink_to(original.absolute())
    assert common_provenance([fold]) == common_provenance([original]) == AFFINE
    assert common_provenance([stored]) == UNKNOWN


def test_links_in_a_circle_have_none(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.symlink_to("b.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("a.nii.gz")
    assert read_sidecar(path) is None


def test_scans_that_agree_are_of_one_preprocessing_and_none_is_unknown(tmp_path):
    assert common_provenance([scan(tmp_path / "a", name, AFFINE) for name in "xyz"]) == AFFINE
    assert common_provenance([scan(tmp_path / "b", name) for name in "xyz"]) == UNKNOWN


@pytest.mark.parametrize("other", [DEFORMABLE, FSL, Provenance("affine", "subject", "builtin")])
def test_scans_made_in_different_ways_are_refused_with_one_of_each(tmp_path, other):
    scans = [scan(tmp_path, "a", AFFINE), scan(tmp_path, "b", AFFINE), scan(tmp_path, "c", other)]
    with pytest.raises(ValueError) as caught:
        common_provenance(scans)
    message = str(caught.value)
    assert f"{scans[0]} ({AFFINE})" in message
    assert f"{scans[2]} ({other})" in message
    assert "must not be mixed" in message


def test_scans_without_sidecar_beside_others_are_refused_unless_vouched_for(tmp_path):
    scans = [scan(tmp_path, "a", AFFINE), scan(tmp_path, "b")]
    with pytest.raises(ValueError, match=r"b\.nii\.gz has no sidecar, .*a\.nii\.gz has one"):
        common_provenance(scans)
    with pytest.raises(ValueError, match="has no sidecar"):
        common_provenance(scans, Provenance("affine"))
    stated = Provenance("affine", "template")
    assert common_provenance(scans, stated) == stated


def test_flags_stand_where_sidecars_do_not_and_may_not_contradict_them(tmp_path):
    assert common_provenance([scan(tmp_path, "a")], Provenance("affine")).mask is None
    assert common_provenance([scan(tmp_path, "a")], Provenance("affine")).registration == "affine"
    made = scan(tmp_path, "b", DEFORMABLE)
    assert common_provenance([made], Provenance("deformable")) == DEFORMABLE
    message = r"--registration affine, not deformable, --mask subject, not template as the sidecar"
    with pytest.raises(ValueError, match=message):
        common_provenance([made], Provenance("affine", "subject"))


def test_only_what_both_know_can_differ():
    assert FSL.differences(DEFORMABLE) == ["backend fsl, not builtin"]
    assert AFFINE.differences(UNKNOWN) == UNKNOWN.differences(AFFINE) == []
    assert Provenance(mask="subject").filled_from(FSL) == Provenance("deformable", "subject", "fsl")
    assert str(Provenance("affine")) == "registration affine, mask unknown, backend unknown"


def test_comparison_counts_and_names_what_differs(tmp_path):
    ways = {"a": AFFINE, "b": DEFORMABLE, "c": FSL, "d": None}
    scans = [scan(tmp_path, name, made) for name, made in ways.items()]
    comparison = compare_provenance(scans, AFFINE)
    assert comparison == {
        "checkpoint": vars(AFFINE),
        "scans_without_sidecar": 1,
        "scans_that_differ": 2,
        "first_that_differs": str(scans[1]),
        "differences": ["backend fsl, not builtin", "registration deformable, not affine"],
    }
    text = format_comparison(comparison)
    assert text.count("warning: 2 scans, the first") == text.count("note: 1 scans have no") == 1
    assert "warning" not in format_comparison(compare_provenance(scans[:1], AFFINE))
    assert format_comparison(compare_provenance(scans, UNKNOWN)).count("\n") == 0


@pytest.mark.parametrize(
    ("flag", "known"), [("registration", recipe.REGISTRATIONS), ("mask", recipe.MASKS)]
)
def test_training_takes_the_words_of_preprocessing(flag, known):
    needed = ["--train_folder", "a", "--val_folder", "b", "--labels", "c", "--output_dir", "d"]
    for word in known:
        assert getattr(parse_first_stage([*needed, f"--{flag}", word]), flag) == word
    assert getattr(parse_first_stage(needed), flag) is None
    with pytest.raises(SystemExit):
        parse_first_stage([*needed, f"--{flag}", "other"])
