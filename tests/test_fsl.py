import gzip
import hashlib
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import brain, write_scan

from data_preprocessing.pipeline import fsl
from data_preprocessing.pipeline.recipe import Recipe
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, READ_ERRORS

DEFORMABLE, AFFINE = Recipe("fsl"), Recipe("fsl", "affine")
CUBE = np.diag([4.0, 4.0, 4.0, 1.0])
# A stand-in for every program of FSL. It writes down how it was called and copies files that were
# made before; $FAKE_FSL says what goes wrong: {program: exit code or "killed", file: kind}.
# Its second line is for sh, since no path with a space may stand in the first; Python skips it.
PROGRAM = f"""#!/bin/sh
''''exec "{sys.executable}" -S "$0" "$@" #'''
import json, os, shutil, signal, sys
here = os.path.dirname(os.path.abspath(__file__))
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
products, wrong = os.path.join(here, "products"), json.loads(os.environ.get("FAKE_FSL", "{{}}"))
names = ("FSLDIR", "FSLOUTPUTTYPE", "OMP_NUM_THREADS")
with open(os.path.join(here, "calls"), "a") as file:
    call = dict(argv=[name, *arguments], env=[os.environ.get(n) for n in names], cwd=os.getcwd(),
                path=os.environ["PATH"])
    file.write(json.dumps(call) + chr(10))
if name == "fsl_anat":
    source = arguments[arguments.index("-i") + 1]
    folder = arguments[arguments.index("-o") + 1] + ".anat"
    os.mkdir(folder)
    shutil.copyfile(source, os.path.join(folder, "T1.nii.gz"))
    with open(os.path.join(folder, "log.txt"), "w") as log:
        log.write("".join("command " + str(n) + chr(10) for n in range(9)))
    made = [n for n in os.listdir(products) if n.startswith("T1_") and n[-12:] != "brain.nii.gz"]
    made.append("T1_biascorr_brain.nii.gz")
else:
    out = next(a for a in arguments if a.startswith("--out="))[6:]
    folder, made = os.path.dirname(out), [os.path.basename(out) + ".nii.gz"]
sys.stderr.write("a warning of " + name + chr(10))
if wrong.get(name) == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if wrong.get(name):
    sys.exit(wrong[name])
for file in made:
    kind = wrong.get(file, file)
    if kind != "missing":
        shutil.copyfile(os.path.join(products, kind), os.path.join(folder, file))
"""


def smooth(shape=GRID_SHAPE, value=100.0):
    """A volume whose middle half is full; small once compressed."""
    volume = np.zeros(shape, dtype=np.float32)
    volume[tuple(slice(size // 8, -size // 8) for size in shape)] = value
    return volume


@pytest.fixture(scope="session")
def installation(tmp_path_factory):
    """A folder like $FSLDIR with fakes for programs, and everything they can make."""
    fsl_dir = tmp_path_factory.mktemp("fsl")
    for name in ("fsl_anat", "fnirt", "applywarp", "bc"):
        program = fsl_dir / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(PROGRAM)
        program.chmod(0o755)
    standard = fsl_dir / "data" / "standard"
    for name in ("MNI152_T1_2mm", "MNI152_T1_2mm_brain_mask"):
        write_scan(standard / f"{name}.nii.gz", smooth())
    (fsl_dir / "etc").mkdir()
    (fsl_dir / "etc" / "fslversion").write_text("6.0.7.4:abcd1234\n")
    write_products(fsl_dir / "bin" / "products")
    return fsl_dir


def write_products(folder):
    good = smooth()
    for name, volume in {
        "T1_to_MNI_nonlin": good,
        "T1_to_MNI_lin": good,
        "T1_biascorr_brain": smooth((20, 20, 20)),
        "T1_to_MNI_nonlin_coeff": np.ones((6, 6, 6, 3), dtype=np.float32),
        "T1_to_MNI_nonlin_brain": 2 * good,
        "T1_to_MNI_lin_brain": 3 * good,
        "nan": np.where(good > 0, np.nan, good),
        "infinite": np.where(good > 0, np.inf, good),
        "zero": 0 * good,
        "speck": np.where(np.arange(GRID_SHAPE[0])[:, None, None] < 8, good * 0 + 1, 0),
        "shape": smooth((90, 109, 91)),
    }.items():
        write_scan(folder / f"{name}.nii.gz", volume)
    write_scan(folder / "flipped.nii.gz", good, GRID_AFFINE * [[-1], [1], [1], [1]])
    write_scan(folder / "shifted.nii.gz", good, GRID_AFFINE + np.eye(4)[[3, 0, 1, 2]])
    whole = (folder / "T1_to_MNI_nonlin.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "singular").write_text("0 0 0 0\n" * 4)
    (folder / "short").write_text("1 0 0\n" * 3)
    np.savetxt(folder / "T1_to_MNI_lin.mat", np.diag([1.1, 1.2, 0.9, 1]))
    np.savetxt(folder / "T1_orig2roi.mat", np.eye(4))


@pytest.fixture
def fake(installation, monkeypatch):
    """FSL, as far as a program can tell, without any calls yet."""
    monkeypatch.setenv("FSLDIR", str(installation))
    monkeypatch.setenv("FSLOUTPUTTYPE", "NIFTI")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    (installation / "bin" / "calls").unlink(missing_ok=True)
    return installation


def calls(fake):
    path = fake / "bin" / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def go_wrong(monkeypatch, **what):
    monkeypatch.setenv("FAKE_FSL", json.dumps(what))


def write_head(folder, name="head.nii.gz"):
    """4.1 litres of noise, as a scanner's background is."""
    voxels = np.random.default_rng(0).uniform(50, 100, (40, 40, 40)).astype(np.float32)
    return write_scan(folder / name, voxels, CUBE)


def map_scan(scan, tmp_path, recipe=DEFORMABLE):
    workspace = tmp_path / "my work"  # fsl_anat breaks on blanks in a path
    workspace.mkdir()
    return fsl.map_scan(scan, recipe, workspace=workspace)


@pytest.mark.parametrize(
    "recipe, flag, brain_name",
    [
        (DEFORMABLE, "--warp=T1.anat/T1_to_MNI_nonlin_coeff", "T1_to_MNI_nonlin_brain"),
        (AFFINE, "--premat=T1.anat/T1_to_MNI_lin.mat", "T1_to_MNI_lin_brain"),
    ],
)
def test_fsl_is_called_as_the_published_script_calls_it(fake, tmp_path, recipe, flag, brain_name):
    map_scan(write_head(tmp_path), tmp_path, recipe)
    standard = f"{fake}/data/standard/MNI152_T1_2mm"
    assert [call["argv"] for call in calls(fake)] == [
        ["fsl_anat", "-i", "in.nii.gz", "-o", "T1", "--noseg", "--nosubcortseg", "--clobber"],
        [
            "applywarp",
            f"--ref={standard}",
            "--in=T1.anat/T1_biascorr_brain",
            flag,
            f"--out=T1.anat/{brain_name}",
        ],
    ]
    for call in calls(fake):
        assert call["env"] == [str(fake), "NIFTI_GZ", "1"]
        assert call["cwd"] == str(tmp_path / "my work")
        assert f"{fake}/bin" in call["path"].split(":")


def test_the_brain_on_the_grid_and_its_transform_come_back(fake, tmp_path):
    mapped = map_scan(write_head(tmp_path), tmp_path)
    assert mapped.volume.shape == GRID_SHAPE
    assert mapped.volume.dtype == np.float32
    np.testing.assert_array_equal(mapped.volume, 2 * smooth())
    assert (mapped.brain, mapped.contents) == (None, "head")
    assert mapped.flat_end_mm2 == 900  # fsl_anat's brain: a block of 30 x 30 x 30 mm
    np.testing.assert_allclose(mapped.transform["flirt_matrix"], np.diag([1.1, 1.2, 0.9, 1]))
    json.dumps(mapped.transform)
    assert {suffix: path.name for suffix, path in mapped.kept.items()} == {
        "_warpcoef.nii.gz": "T1_to_MNI_nonlin_coeff.nii.gz",
        "_orig2roi.mat": "T1_orig2roi.mat",
    }
    assert all(path.is_file() for path in mapped.kept.values())
    (tmp_path / "again").mkdir()
    affine = map_scan(write_head(tmp_path), tmp_path / "again", AFFINE)
    np.testing.assert_array_equal(affine.volume, 3 * smooth())
    assert affine.kept["_affine.mat"].name == "T1_to_MNI_lin.mat"


@pytest.mark.parametrize(
    "name, suffix",
    [
        ("two words", ".nii.gz"),
        ("a'b\"c", ".nii"),
        ("Jürgen $HOME;ls", ".NII.GZ"),
        ("*", ".mgz"),
        ("-o", ".nii.gz"),
    ],
)
def test_names_that_break_scripts_never_reach_them(fake, tmp_path, name, suffix):
    scan = tmp_path / f"{name}{suffix}"
    voxels = np.random.default_rng(0).uniform(50, 100, (40, 40, 40)).astype(np.float32)
    image = (nibabel.MGHImage if suffix == ".mgz" else nibabel.Nifti1Image)(voxels, CUBE)
    if suffix == ".NII.GZ":  # nibabel would not compress it
        scan.write_bytes(gzip.compress(image.to_bytes()))
    else:
        nibabel.save(image, scan)
    map_scan(scan, tmp_path)
    assert len(calls(fake)) == 2
    for call in calls(fake):
        assert not any(blank in word for word in call["argv"] for blank in " \t\n'\"$;*")
    (placed,) = (tmp_path / "my work").glob("in.nii*")
    assert placed.is_symlink() == (suffix != ".mgz")
    found = nibabel.load(placed)
    np.testing.assert_allclose(found.affine, CUBE)
    scale = 1 if suffix != ".mgz" else 1000 / np.percentile(voxels, 99.5)
    np.testing.assert_allclose(np.asarray(found.dataobj), scale * voxels, rtol=1e-5)


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written_outside_the_workspace(fake, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    scan = write_head(tmp_path / "raw")
    before = listing(tmp_path), listing(fake / "data"), scan.read_bytes()
    map_scan(scan, tmp_path)
    after = {path: at for path, at in listing(tmp_path).items() if "my work" not in path.parts}
    assert (after, listing(fake / "data"), scan.read_bytes()) == before


@pytest.mark.parametrize("program", ["fsl_anat", "applywarp"])
@pytest.mark.parametrize(
    "status, said", [(3, "ended with 3"), ("killed", r"ended with signal 9")], ids=str
)
def test_a_program_that_fails_is_named_with_its_last_words(
    fake, tmp_path, monkeypatch, program, status, said
):
    go_wrong(monkeypatch, **{program: status})
    scan = write_head(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        map_scan(scan, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{scan}: {program} ")
    assert f"a warning of {program}" in message
    assert "command 4 | command 5 | command 6 | command 7 | command 8" in message
    assert "command 3" not in message
    assert len(calls(fake)) == (1 if program == "fsl_anat" else 2)


WRONG = {
    "nan.nii.gz": "NaN or infinite",
    "infinite.nii.gz": "NaN or infinite",
    "zero.nii.gz": "0 everywhere",
    "truncated.nii.gz": None,
    "text.nii.gz": None,
}
OFF_GRID = {
    "shape.nii.gz": r"shape \(90, 109, 91\)",
    "flipped.nii.gz": r"affine \[\[2.0, ",
    "shifted.nii.gz": r"affine \[\[-2.0, ",
    "speck.nii.gz": "8.8% of the voxels",
}


@pytest.mark.parametrize(
    "read, file, message",
    [
        *((fsl._read_voxels, file, message) for file, message in WRONG.items()),
        *((fsl._read_on_grid, file, message) for file, message in (WRONG | OFF_GRID).items()),
        (fsl._read_matrix, "singular", "invertible"),
        (fsl._read_matrix, "short", "4 by 4"),
        (fsl._read_matrix, "text.nii.gz", None),
    ],
)
def test_a_file_that_is_not_what_its_step_should_make_is_refused(fake, read, file, message):
    with pytest.raises(READ_ERRORS, match=message):
        read(fake / "bin" / "products" / file)


@pytest.mark.parametrize(
    "recipe, program, file",
    [
        (DEFORMABLE, "fsl_anat", "T1_biascorr_brain.nii.gz"),
        (DEFORMABLE, "fsl_anat", "T1_to_MNI_nonlin_coeff.nii.gz"),
        (DEFORMABLE, "fsl_anat", "T1_to_MNI_nonlin.nii.gz"),
        (DEFORMABLE, "fsl_anat", "T1_to_MNI_lin.mat"),
        (DEFORMABLE, "applywarp", "T1_to_MNI_nonlin_brain.nii.gz"),
        (AFFINE, "fsl_anat", "T1_to_MNI_lin.nii.gz"),
        (AFFINE, "applywarp", "T1_to_MNI_lin_brain.nii.gz"),
    ],
)
@pytest.mark.parametrize("kind, said", [("missing", "was not made"), ("text.nii.gz", ": ")])
def test_each_file_of_a_step_is_read_although_the_step_ends_without_an_error(
    fake, tmp_path, monkeypatch, recipe, program, file, kind, said
):
    go_wrong(monkeypatch, **{file: kind})
    scan = write_head(tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        map_scan(scan, tmp_path, recipe)
    message = str(caught.value)
    assert message.startswith(f"{scan}: {program} failed: {file}")
    assert f"a warning of {program}" in message
    assert len(calls(fake)) == (1 if program == "fsl_anat" else 2)


def test_all_that_a_step_left_wrong_is_said_at_once(fake, tmp_path, monkeypatch):
    go_wrong(
        monkeypatch,
        **{"T1_to_MNI_nonlin.nii.gz": "missing", "T1_biascorr_brain.nii.gz": "zero.nii.gz"},
    )
    with pytest.raises(ValueError, match=r"T1_biascorr_brain.*0 everywhere.*nonlin.*not made"):
        map_scan(write_head(tmp_path), tmp_path)


def test_an_extracted_brain_is_refused_before_fsl_is_called(fake, tmp_path):
    scan = write_scan(tmp_path / "brain.nii.gz", brain((40, 40, 40), age=30), CUBE)
    with pytest.raises(ValueError, match=r"extracted brain.*--backend builtin"):
        map_scan(scan, tmp_path)
    assert not calls(fake)
    (tmp_path / "my work").rmdir()
    map_scan(scan, tmp_path, Recipe("fsl", contents="head"))  # who says so is believed
    assert len(calls(fake)) == 2


def test_recipes_that_fsl_cannot_follow_are_refused(fake):
    for recipe in (DEFORMABLE, AFFINE, Recipe("fsl", contents="head")):
        fsl.check(recipe)
    with pytest.raises(ValueError, match=r"mask subject.*\n.*contents brain") as caught:
        fsl.check(Recipe("fsl", mask="subject", contents="brain"))
    assert str(caught.value).count("--backend builtin") == 2


def test_a_machine_without_fsl_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv("FSLDIR", raising=False)
    with pytest.raises(ValueError, match=r"FSLDIR is not set.*--backend builtin"):
        fsl.check(DEFORMABLE)


def test_all_that_is_missing_of_fsl_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("FSLDIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError) as caught:
        fsl.check(DEFORMABLE)
    for name in ("fsl_anat", "applywarp", "MNI152_T1_2mm.nii.gz", "fslversion", "bc is not"):
        assert name in str(caught.value)


def test_blanks_in_fsls_own_path_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("FSLDIR", str(tmp_path / "my fsl"))
    with pytest.raises(ValueError, match="blanks"):
        fsl.check(DEFORMABLE)


def test_identity_names_version_template_and_flags(fake):
    template = Path(fake, "data/standard/MNI152_T1_2mm.nii.gz")
    found = fsl.identity(DEFORMABLE)
    assert found.versions == {"fsl": "6.0.7.4:abcd1234"}
    assert found.template_sha256 == hashlib.sha256(template.read_bytes()).hexdigest()
    assert found.parameters == {
        "fsl_anat": ["--noseg", "--nosubcortseg", "--clobber"],
        "applywarp": ["--warp=T1.anat/T1_to_MNI_nonlin_coeff"],
    }
    assert fsl.identity(AFFINE).parameters != found.parameters
