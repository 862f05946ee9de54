import nibabel
import numpy as np
from conftest import write_scan

from data_preprocessing import apply_mask
from utils.scans.template import load_template
from utils.scans.volumes import GRID_SHAPE, decode


def test_copies_hold_the_scan_inside_the_templates_brain_and_nothing_outside(tmp_path, capsys):
    volume = np.random.default_rng(0).uniform(1, 2, GRID_SHAPE).astype(np.float32)
    # Stored right to left: the copy is in LAS order, and nothing has changed sides.
    affine = np.array([[2, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], float)
    scan = write_scan(tmp_path / "train" / "a.nii.gz", volume[::-1], affine)
    sheet = tmp_path / "labels.csv"
    sheet.write_text("a,40,0\n")
    flags = ["--scan_folders", str(scan.parent), "--labels", str(sheet)]
    for made in (1, 0):  # what exists is kept
        apply_mask.main([*flags, "--output_dir", str(tmp_path / "masked")])
        assert f"{made} masked scans" in capsys.readouterr().out
    copy = tmp_path / "masked" / "train" / "a.nii.gz"
    expected = np.where(load_template().mask, volume, 0)
    np.testing.assert_array_equal(decode(copy), expected)
    assert nibabel.aff2axcodes(nibabel.load(copy).affine) == ("L", "A", "S")
    assert (tmp_path / "masked" / "labels.csv").read_text() == "a,40,0\n"
