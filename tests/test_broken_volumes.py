"""Broken and odd scans: each is read rightly, or refused in one message that names its file."""

import gzip
import os
import re
import tracemalloc
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import TINY, brain, write_scan
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.pipeline.native import read_native
from utils.scans.cohort import open_cohort
from utils.scans.volumes import GRID_AFFINE, GRID_SHAPE, InputRule, decode, open_scan

ANY = InputRule(any_grid=True)
decode_any = partial(decode, any_grid=True)
VOLUME = brain(TINY, 50)
VOLUME[4:8, 10:14, 12:20] = 300  # one side only: a flip shows
WHOLE = VOLUME.round()
INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


def nifti(voxels=VOLUME, *, affine=GRID_AFFINE, endian="<", tail=b"", cut=None, **fields) -> bytes:
    """A NIfTI-1 file whose header says what `fields` say, whatever is true of its voxels."""
    header = nibabel.Nifti1Header(endianness=endian)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    stored = voxels.astype(voxels.dtype.newbyteorder(endian)).tobytes("F")
    return (header.binaryblock + b"\0\0\0\0" + stored)[:cut] + tail


def plain(**how):
    """A maker of an uncompressed file."""

    def make(folder: Path) -> Path:
        path = folder / "scan.nii"
        path.write_bytes(nifti(**how))
        return path

    return make


def content(data: bytes, name: str = "scan.nii.gz"):
    """A maker of a file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def dims(*sizes: int) -> list[int]:
    return [len(sizes), *sizes, *[1] * (7 - len(sizes))]


ZIPPED = gzip.compress(nifti(), mtime=0)
MIDDLE = len(ZIPPED) // 2


def sform(change) -> dict:
    """Header fields of an sform that is the grid's, changed, with no qform beside it."""
    matrix = GRID_AFFINE.copy()
    change(matrix)
    rows = dict(zip(("srow_x", "srow_y", "srow_z"), matrix[:3], strict=True))
    return {"sform_code": 1, "qform_code": 0, **rows}


def link_loop(folder: Path) -> Path:
    (folder / "scan.nii.gz").symlink_to(folder / "other.nii.gz")
    (folder / "other.nii.gz").symlink_to(folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def dead_link(folder: Path) -> Path:
    (folder / "scan.nii.gz").symlink_to(folder / "gone.nii.gz")
    return folder / "scan.nii.gz"


def directory(folder: Path) -> Path:
    (folder / "scan.nii.gz").mkdir()
    return folder / "scan.nii.gz"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def locked(folder: Path) -> Path:
    path = content(ZIPPED)(folder)
    path.chmod(0)
    return path


def spotted(value: float) -> np.ndarray:
    """The volume with another value in one voxel."""
    voxels = VOLUME.copy()
    voxels[3, 3, 3] = value
    return voxels


UNREADABLE = "not a readable scan"
NO_PLACE = "its affine is not invertible"
NOT_3D = "one 3-D volume expected"
LARGE = "voxels are too many"
REFUSED = (
    # Files that are none.
    ("empty", content(b""), UNREADABLE),
    ("empty, not compressed", content(b"", "scan.nii"), UNREADABLE),
    ("one byte", content(b"\x1f"), UNREADABLE),
    ("text", content(b"hello, world\n" * 100), UNREADABLE),
    ("text, not compressed", content(b"hello, world\n" * 100, "scan.nii"), UNREADABLE),
    ("zeros", content(bytes(1000), "scan.nii"), UNREADABLE),
    ("compressed nothing", content(gzip.compress(b"")), UNREADABLE),
    ("compressed text", content(gzip.compress(b"hello" * 200)), UNREADABLE),
    ("HTML of a failed download", content(b"<!DOCTYPE html><p>404"), UNREADABLE),
    ("PNG", content(b"\x89PNG\r\n\x1a\n" + bytes(500)), UNREADABLE),
    ("zip archive", content(b"PK\x03\x04" + bytes(500)), UNREADABLE),
    ("LFS pointer", content(b"version https://git-lfs.github.com/spec/v1"), "a pointer of Git LFS"),
    ("DICOM", content(bytes(128) + b"DICM" + bytes(500), "scan.nii"), UNREADABLE),
    ("not compressed but named so", content(nifti()), UNREADABLE),
    ("compressed but not named so", content(ZIPPED, "scan.nii"), UNREADABLE),
    ("compressed twice", content(gzip.compress(ZIPPED)), UNREADABLE),
    ("folder of the name", directory, "not a file"),
    ("named pipe", pipe, "not a file"),
    ("links in a circle", link_loop, "no such file"),
    ("link to nothing", dead_link, "no such file"),
    ("missing", lambda folder: folder / "scan.nii.gz", "no such file"),
    # Cut and damaged.
    *((f"cut in the header at {at}", content(nifti()[:at], "scan.nii"), UNREADABLE)
      for at in (1, 4, 100, 347)),
    *((f"cut in the voxels at {at}", content(nifti()[:at], "scan.nii"), "cannot be read|readable")
      for at in (348, 352, 400, 50_000)),
    *((f"gzip cut at {at}", content(ZIPPED[:at]), UNREADABLE) for at in (2, 9, 10, 11, 40)),
    *((f"gzip cut to {part} %", content(ZIPPED[: len(ZIPPED) * part // 100]), "damaged or cut")
      for part in (10, 25, 50, 75, 90, 99)),
    *((f"gzip without its last {last} bytes", content(ZIPPED[:-last]), "damaged or cut")
      for last in (1, 4, 8, 9)),
    ("gzip of another checksum", content(ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:]),
     "damaged or cut"),
    ("gzip of another length", content(ZIPPED[:-1] + bytes([ZIPPED[-1] ^ 1])), "damaged or cut"),
    ("gzip with a wrong byte in the middle",
     content(ZIPPED[:MIDDLE] + bytes([ZIPPED[MIDDLE] ^ 255]) + ZIPPED[MIDDLE + 1 :]),
     "damaged or cut"),
    ("gzip with rubbish behind it", content(ZIPPED + b"rubbish"), "damaged or cut"),
    ("gzip of an unknown method", content(ZIPPED[:2] + b"\x07" + ZIPPED[3:]), UNREADABLE),
    # Headers that lie.
    ("wrong magic", plain(magic=b"xyz"), UNREADABLE),
    ("unknown type of voxels", plain(datatype=3), UNREADABLE),
    ("one bit a voxel", plain(datatype=1, bitpix=1), UNREADABLE),
    ("voxels in the header", plain(vox_offset=100), UNREADABLE),
    ("voxels beyond the end", plain(vox_offset=1e9), "cannot be read"),
    ("offset not a number", plain(vox_offset=np.nan), UNREADABLE),
    ("offset infinite", plain(vox_offset=np.inf), UNREADABLE),
    ("negative offset", plain(vox_offset=-352), UNREADABLE),
    *((f"scl_slope {slope}", plain(scl_slope=slope, scl_inter=inter), "scl_|readable|infinite|NaN")
      for slope, inter in ((1, np.inf), (1, np.nan))),
    ("slope that overflows", plain(scl_slope=3e38, scl_inter=0), "NaN or infinite"),
    # Dimensions.
    ("no dimension", plain(dim=[0] * 8), NOT_3D),
    ("1-D", plain(dim=dims(32)), NOT_3D),
    ("2-D", plain(dim=dims(32, 36)), NOT_3D),
    ("eight dimensions", plain(dim=[8, 32, 36, 32, 1, 1, 1, 1]), UNREADABLE + "|" + NOT_3D),
    ("negative number of dimensions", plain(dim=[-1, 32, 36, 32, 1, 1, 1, 1]),
     UNREADABLE + "|" + NOT_3D),
    *((f"size 0 of axis {axis}", plain(dim=dims(*np.roll([0, 32, 32], axis))), NOT_3D)
      for axis in range(3)),
    ("negative size", plain(dim=dims(32, -36, 32)), NOT_3D),
    ("no volume of several", plain(dim=dims(32, 36, 32, 0)), NOT_3D),
    ("two volumes", plain(dim=dims(32, 36, 16, 2)), NOT_3D),
    ("a vector a voxel", plain(dim=dims(32, 36, 8, 1, 4)), NOT_3D),
    ("a size more than there are voxels", plain(dim=dims(32, 36, 33)), "cannot be read"),
    ("huge", plain(dim=dims(32767, 32767, 32767)), LARGE),
    ("huge, compressed", content(gzip.compress(nifti(dim=dims(32767, 32767, 32767)))), LARGE),
    ("huge along one axis", plain(dim=dims(32767, 32767, 2)), LARGE),
    # Voxels that are no intensities.
    ("colours", content(nifti(datatype=128, bitpix=24), "scan.nii"), "colours"),
    ("colours and opacity", plain(datatype=2304, bitpix=32), "colours"),
    ("complex", plain(voxels=VOLUME.astype(np.complex64)), "complex"),
    ("complex, double", plain(voxels=VOLUME.astype(np.complex128)), "complex"),
    ("all zero", plain(voxels=VOLUME * 0), "no brain"),
    ("all one", plain(voxels=VOLUME * 0 + 1), "no brain"),
    ("one value in the brain", plain(voxels=(VOLUME > 0).astype(np.float32)), "no brain"),
    ("one voxel above 0", plain(voxels=np.where(np.arange(VOLUME.size).reshape(TINY) == 9, 1, 0
        ).astype(np.float32)), "no brain"),
    ("all negative", plain(voxels=-VOLUME - 1), "no brain"),
    ("all NaN", plain(voxels=VOLUME * np.nan), "36864 voxels are NaN or infinite"),
    ("one NaN", plain(voxels=spotted(np.nan)), "1 voxels are NaN or infinite"),
    ("one infinite voxel", plain(voxels=spotted(np.inf)), "1 voxels are NaN or infinite"),
    ("one at minus infinity", plain(voxels=spotted(-np.inf)), "1 voxels are NaN or infinite"),
    ("beyond float32", plain(voxels=VOLUME.astype(np.float64) * 1e300), "NaN or infinite"),
    # Places that are none.
    ("affine of zeros", plain(**sform(lambda m: m.__imul__(0))), NO_PLACE),
    ("affine with a NaN", plain(**sform(lambda m: m.__setitem__((0, 0), np.nan))), NO_PLACE),
    ("affine with an infinity", plain(**sform(lambda m: m.__setitem__((1, 3), np.inf))), NO_PLACE),
    ("two axes alike", plain(**sform(lambda m: m.__setitem__(0, m[1]))), NO_PLACE),
    ("an axis of no length", plain(**sform(lambda m: m.__setitem__(2, 0))), NO_PLACE),
    ("voxels of 1e-9 mm", plain(**sform(lambda m: m.__imul__(1e-9))), NO_PLACE),
    ("qform with NaN", plain(sform_code=0, quatern_b=np.nan), UNREADABLE + "|" + NO_PLACE),
    ("qform that is no rotation", plain(sform_code=0, quatern_b=3.0), UNREADABLE),
    ("qform of NaN voxel size", plain(sform_code=0, pixdim=[1, np.nan, 2, 2, 0, 0, 0, 0]),
     UNREADABLE + "|" + NO_PLACE),
)  # fmt: skip


def refused(path, message, read, *arguments):
    """Reading ends in one message, which matches `message` and names `path`."""
    with pytest.raises((ValueError, OSError), match=message) as raised:
        read(*arguments)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("name", "make", "message"), REFUSED, ids=[case[0] for case in REFUSED])
@pytest.mark.filterwarnings("ignore")
def test_broken_scan_is_refused_in_one_message_that_names_it(tmp_path, name, make, message):
    path = make(tmp_path)
    refused(path, message, decode_any, path)
    before = sorted(tmp_path.iterdir())
    # As users do: TINY is off the grid besides.
    refused(path, "", decode, path)
    assert sorted(tmp_path.iterdir()) == before


RAS = np.diag([-1.0, 1, 1, 1]) @ GRID_AFFINE
SLA = GRID_AFFINE[:, [2, 0, 1, 3]]


def typed(code: str):
    """A maker of a file of whole numbers of this type."""
    return plain(voxels=np.minimum(WHOLE, 127).astype(code))


SMALL = np.minimum(WHOLE, 127)
AS_NIFTI2 = nibabel.Nifti2Image(VOLUME, GRID_AFFINE)
READ = (
    ("as it is", plain(), VOLUME),
    ("compressed", content(ZIPPED), VOLUME),
    ("compressed in two members",
     content(gzip.compress(nifti()[:9000]) + gzip.compress(nifti()[9000:])), VOLUME),
    ("capitals in the suffix", content(ZIPPED, "SCAN.NII.GZ"), VOLUME),
    ("blanks and letters in the name", content(ZIPPED, "Jürgen 脳 1.nii.gz"), VOLUME),
    ("name of a formula", content(ZIPPED, "=cmd().nii.gz"), VOLUME),
    ("big-endian", plain(endian=">"), VOLUME),
    ("big-endian, compressed", content(gzip.compress(nifti(endian=">"))), VOLUME),
    ("NIfTI-2", content(AS_NIFTI2.to_bytes(), "scan.nii"), VOLUME),
    ("RAS twin", plain(voxels=VOLUME[::-1], affine=RAS), VOLUME),
    ("upside down", plain(voxels=VOLUME[:, :, ::-1], affine=GRID_AFFINE @ np.diag([1, 1, -1, 1.0])),
     VOLUME),
    ("axes in another order", plain(voxels=VOLUME.transpose(2, 0, 1), affine=SLA), VOLUME),
    ("4-D of one volume", plain(dim=dims(*TINY, 1)), VOLUME),
    ("7-D of one volume", plain(dim=dims(*TINY, 1, 1, 1, 1)), VOLUME),
    ("scl_slope 0 is no scaling", plain(scl_slope=0, scl_inter=9), VOLUME),
    ("scl_slope NaN is no scaling", plain(scl_slope=np.nan, scl_inter=0), VOLUME),
    ("scl_slope infinite is no scaling", plain(scl_slope=np.inf, scl_inter=0), VOLUME),
    ("scl_slope 2", plain(scl_slope=2, scl_inter=0), 2 * VOLUME),
    ("scl_slope -1 of a negative", plain(voxels=-VOLUME, scl_slope=-1, scl_inter=0), VOLUME),
    ("scl_inter", plain(voxels=VOLUME - 5, scl_slope=1, scl_inter=5), VOLUME),
    *((f"type {code}", typed(code), SMALL) for code in INTEGERS),
    ("type f8", plain(voxels=VOLUME.astype("f8")), VOLUME),
    ("type f4, big-endian i2", plain(voxels=WHOLE.astype("i2"), endian=">"), WHOLE),
    ("sform before qform", plain(pixdim=[1, 3, 3, 3, 0, 0, 0, 0], quatern_b=1.0), VOLUME),
    ("qform alone", plain(sform_code=0), VOLUME),
    ("NaN in a qform that is not used", plain(quatern_b=np.nan), VOLUME),
    ("some negative voxels", plain(voxels=spotted(-7)), spotted(-7)),
    ("extension in the header", content(nifti(vox_offset=368)[:348] + b"\1\0\0\0" + bytes(
        [16, 0, 0, 0, 6, 0, 0, 0]) + b"=cmd()  " + nifti()[352:], "scan.nii"), VOLUME),
    ("a few bytes behind the voxels", plain(tail=bytes(512)), VOLUME),
    ("a few bytes behind, compressed", content(gzip.compress(nifti(tail=bytes(512)))), VOLUME),
    ("magic of a pair in one file", plain(magic=b"ni1"), VOLUME),
    ("size of the header misstated", plain(sizeof_hdr=349), VOLUME),
    ("description that is no text", plain(descrip=b"\xff\xfe" * 20), VOLUME),
    ("description that is a formula", plain(descrip=b"=cmd|' /C calc'!A0"), VOLUME),
)  # fmt: skip


@pytest.mark.parametrize(("name", "make", "expected"), READ, ids=[case[0] for case in READ])
@pytest.mark.filterwarnings("ignore")
def test_odd_scan_is_read_with_the_right_value_in_every_voxel(tmp_path, name, make, expected):
    read = decode_any(make(tmp_path))
    np.testing.assert_allclose(read, expected, rtol=1e-6, atol=1e-4)


def on_grid(**fields) -> bytes:
    """The header of a scan on the grid, without voxels: none are read to judge it."""
    rows = {"dim": dims(*GRID_SHAPE)}
    return nifti(np.zeros((1, 1, 1), np.float32), **(rows | fields))


SHIFTED = GRID_AFFINE + np.eye(4)[:, [3, 1, 2, 0]] * 3
OFF_GRID = (
    ("origin 3 mm away", on_grid(affine=SHIFTED)),
    ("right voxels, wrong axis", on_grid(affine=SLA)),
    ("twin of another origin", on_grid(affine=RAS + SHIFTED - GRID_AFFINE)),
    ("1 mm", on_grid(affine=GRID_AFFINE / 2)),
    ("one plane more", on_grid(dim=dims(92, 109, 91))),
    ("one plane less", on_grid(dim=dims(91, 108, 91))),
    ("metres", on_grid(affine=GRID_AFFINE / 1000 * 20)),
    ("sform off, qform on the grid", on_grid(srow_x=[-2, 0, 0, 0])),
    ("qform of no voxel size", on_grid(sform_code=0, pixdim=[1, 0, 0, 0, 0, 0, 0, 0])),
    ("no orientation", on_grid(sform_code=0, qform_code=0)),
    ("sheared", on_grid(srow_x=[-2, 0.1, 0, 90])),
    ("turned by 3 degrees", on_grid(srow_x=[-2, 0.1, 0, 90], srow_y=[-0.1, 2, 0, -126])),
)  # fmt: skip


@pytest.mark.parametrize(("name", "data"), OFF_GRID, ids=[case[0] for case in OFF_GRID])
@pytest.mark.filterwarnings("ignore")
def test_scan_off_the_grid_is_refused_by_its_header_alone(tmp_path, name, data):
    path = content(data, "scan.nii")(tmp_path)
    with pytest.raises(ValueError, match=r"scan\.nii: not on the FSL MNI152 2 mm grid.*preprocess"):
        open_scan(path)


@pytest.mark.parametrize(
    ("data", "orientation"),
    [
        (on_grid(), "LAS"),
        (on_grid(affine=np.array([[2, 0, 0, -90], *GRID_AFFINE[1:]])), "RAS"),
        (on_grid(pixdim=[1, 9, 9, 9, 0, 0, 0, 0]), "LAS"),  # sform before a qform that is off
        (on_grid(sform_code=0), "LAS"),
        (on_grid(endian=">"), "LAS"),
        (on_grid(xyzt_units=1), "LAS"),
    ],
)
def test_scan_on_the_grid_is_known_by_its_header_alone(tmp_path, data, orientation):
    opened = open_scan(content(data, "scan.nii")(tmp_path))
    assert (opened.orientation, opened.shape) == (orientation, GRID_SHAPE)


def test_memory_follows_the_header_and_not_what_a_compressed_stream_holds(tmp_path):
    """A gzip bomb: 1 MB that unpacks to 200 MB of zeros behind a small volume."""
    path = content(ZIPPED + gzip.compress(bytes(200 << 20), 1))(tmp_path)
    assert path.stat().st_size < 2 << 20
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: .*more bytes behind its voxels"):
        decode_any(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_file_without_permission_is_refused_by_name(tmp_path):
    with pytest.raises((ValueError, OSError), match=r"scan\.nii\.gz"):
        decode_any(locked(tmp_path))


# What predict.py reads before preprocessing, of 2 mm voxels over 80 to 600 mm.
HEAD = brain((64, 72, 64), 50)
NATIVE = (
    *((name, make, "") for name, make, _ in REFUSED if not name.startswith((
        "one NaN", "one infinite", "one at minus", "all one", "all negative", "one value",
        "one voxel", "beyond float32", "slope that overflows",
    ))),
    ("a head of 4 mm", plain(voxels=HEAD, affine=np.diag([0.05, 0.05, 0.05, 1])), "be a head"),
    ("a head of 64 m", plain(voxels=HEAD, affine=np.diag([1e3, 1e3, 1e3, 1])), "be a head"),
    ("one slice", plain(voxels=HEAD[:, :, :1]), "one 3-D volume expected"),
    ("finely cut beyond memory", plain(dim=dims(32767, 32767, 32767), affine=np.diag(
        [0.01, 0.01, 0.01, 1])), "too many"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "make", "message"), NATIVE, ids=[case[0] for case in NATIVE])
@pytest.mark.filterwarnings("ignore")
def test_broken_head_is_refused_in_one_message_that_names_it(tmp_path, name, make, message):
    path = make(tmp_path)
    refused(path, message, read_native, path)


def folder_of(*names: str):
    def make(folder: Path) -> Path:
        for name in names:
            (folder / name).write_bytes(ZIPPED if name.endswith("gz") else nifti())
        return folder

    return make


FOLDERS = (
    ("missing", lambda folder: folder / "none", "no such folder"),
    ("a file", content(b"x", "none"), "no such folder"),
    ("empty", folder_of(), "no .nii.gz or .nii file"),
    ("other files alone", folder_of("a.mgz", "a.json", "a.nii.gz.part"), "no .nii.gz or .nii file"),
    ("hidden files alone", folder_of(".sub-1.nii.gz", "._sub-1.nii"), "no .nii.gz or .nii file"),
    ("one scan twice", folder_of("sub-1.nii", "sub-1.nii.gz"), "two scans of one name, remove one"),
    ("one scan twice in capitals", folder_of("sub-1.nii", "sub-1.NII.GZ"), "two scans of one name"),
)


@pytest.mark.parametrize(("name", "make", "message"), FOLDERS, ids=[case[0] for case in FOLDERS])
def test_folder_without_usable_scans_is_refused_by_name(tmp_path, name, make, message):
    refused(tmp_path, re.escape(message), open_cohort, make(tmp_path), None, ANY)


def test_all_broken_scans_of_a_folder_are_named_at_once(tmp_path):
    write_scan(tmp_path / "good.nii.gz", VOLUME)
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.nii.gz").mkdir()
    with pytest.raises(ValueError, match=r"(?s)a\.nii\.gz.*b\.nii\.gz.*c\.nii\.gz") as raised:
        open_cohort(tmp_path, None, ANY)
    assert "good" not in str(raised.value)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_header_with_any_bytes_changed_is_read_or_refused_by_name(tmp_path_factory, data):
    header = bytearray(on_grid())
    for _ in range(data.draw(st.integers(1, 6))):
        header[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    path = content(bytes(header), "scan.nii")(tmp_path_factory.mktemp("header"))
    for read in (lambda: open_scan(path, any_grid=True), lambda: decode_any(path)):
        try:
            read()
        except (ValueError, OSError) as error:
            assert str(path) in str(error)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    code=st.sampled_from((*INTEGERS, "f4", "f8")),
    endian=st.sampled_from("<>"),
    packed=st.booleans(),
)
def test_scan_stored_in_any_order_type_and_byte_order_is_read_alike(
    tmp_path_factory, order, flips, code, endian, packed
):
    affine, voxels = GRID_AFFINE.copy(), SMALL
    for axis in np.flatnonzero(flips):
        turn = np.eye(4)
        turn[axis, axis], turn[axis, 3] = -1, TINY[axis] - 1
        affine, voxels = affine @ turn, np.flip(voxels, axis)
    affine, voxels = affine[:, [*order, 3]], voxels.transpose(order)
    stored = nifti(voxels.astype(code), affine=affine, endian=endian)
    name = "scan.nii.gz" if packed else "scan.nii"
    folder = tmp_path_factory.mktemp("order")
    path = content(gzip.compress(stored, 1) if packed else stored, name)(folder)
    assert np.array_equal(decode_any(path), SMALL)
    assert open_scan(path, any_grid=True).shape == TINY
