"""Decoded scans are exact, found again, and whole whatever happens to the process that writes."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, brain, training_flags, write_cohort, write_scan

import train_first_stage
from utils import machine
from utils.networks.execution import Execution
from utils.scans import volumes
from utils.scans.cache import Cache, DiskCache
from utils.scans.cohort import open_cohort
from utils.scans.dataset import ScanDataset, training_loader
from utils.scans.volumes import GRID_SHAPE, InputRule, read_scan, z_score
from utils.training import run

ANY = InputRule(any_grid=True)
CPU = Execution(torch.device("cpu"))


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        write_scan(tmp_path / "scans" / f"{index}.nii.gz", brain(TINY, 20 + 10 * index, index))
    return tmp_path / "scans"


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files that were decoded."""
    paths: list[Path] = []
    decode = volumes.decode
    monkeypatch.setattr(
        volumes, "decode", lambda path, **grid: paths.append(path) or decode(path, **grid)
    )
    return paths


def open_scans(folder, kind="disk", into=None):
    kept = Cache(kind, into or folder.parent / "kept", dtype="float32")
    return ScanDataset(open_cohort(folder, None, ANY), ANY, kept)


def disk_cache(folder, paths, rule=ANY, dtype="float16") -> DiskCache:
    return DiskCache(Cache("disk", folder.parent / "kept", dtype=dtype), paths, rule, TINY)


def kept_files(folder) -> list[Path]:
    return sorted((folder.parent / "kept").glob("[!.]*.npy"))


@pytest.mark.parametrize("intensity", ["brain", "authors"])
def test_kept_scans_are_exact_to_half_precision(tmp_path, intensity):
    volume = brain(TINY, 50)
    path = write_scan(tmp_path / "a.nii.gz", volume)
    image = z_score(volume, intensity)
    rule = InputRule(intensity=intensity, any_grid=True)
    found = read_scan(path, rule, "float16")[0].astype(np.float32)
    assert (np.abs(found - image) <= np.abs(image) * 2.0**-11 + 1e-7).all()
    assert np.array_equal(read_scan(path, rule, "float32")[0], image)


def test_values_that_half_precision_cannot_hold_are_refused(tmp_path):
    volume = brain(TINY, 50)
    volume[0, 0, 0] = -1e7
    path = write_scan(tmp_path / "a.nii.gz", volume)
    input_rule = InputRule(intensity="authors", any_grid=True)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: values beyond 65504, .* to 0"):
        read_scan(path, input_rule, "float16")
    read_scan(path, input_rule, "float32")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_training_batches_are_the_same_whichever_the_cache(folder, dtype):
    scans, batches = open_cohort(folder, None, ANY), {}
    for kind in ("none", "disk", "device"):
        torch.manual_seed(1)
        dataset = ScanDataset(scans, ANY, Cache(kind, folder.parent / "kept", dtype=dtype))
        loader = training_loader(dataset, batch_size=4, full_batches=False)
        batches[kind] = [(batch["index"], CPU.images(batch)) for batch in loader]
    for kind in ("disk", "device"):
        for (index, image), (expected_index, expected) in zip(
            batches[kind], batches["none"], strict=True
        ):
            assert torch.equal(index, expected_index)
            assert torch.equal(image, expected)
            assert image.dtype == torch.float32
    volumes = [z_score(brain(TINY, 20 + 10 * i, i)) for i in batches["none"][0][0].tolist()]
    expected = torch.from_numpy(np.stack(volumes)).to(getattr(torch, dtype)).float()
    assert torch.equal(batches["none"][0][1][:, 0], expected)


def test_kept_files_are_named_by_path_size_time_rule_and_type(folder):
    path, other = folder / "0.nii.gz", folder / "1.nii.gz"
    other.write_bytes(path.read_bytes())
    for file in (path, other):
        os.utime(file, ns=(5, 5))

    def name(path, rule=ANY, dtype="float16"):
        return disk_cache(folder, [path], rule, dtype).files[0]

    names = [name(path), name(other), name(path, dtype="float32")]
    assert name(path) == names[0]
    names += [
        name(path, InputRule(resolution=4, any_grid=True)),
        name(path, InputRule(intensity="authors", any_grid=True)),
    ]
    os.utime(path, ns=(5, 6))
    names.append(name(path))
    path.write_text("four")
    os.utime(path, ns=(5, 5))
    names.append(name(path))
    assert len(set(names)) == 7


def test_links_to_one_scan_share_its_entry(folder, decoded):
    (folder / "link.nii.gz").symlink_to(folder / "0.nii.gz")
    assert len(open_scans(folder)) == 7
    assert len(decoded) == len(kept_files(folder)) == 6


def test_a_second_run_decodes_nothing_but_what_has_changed(folder, decoded):
    open_scans(folder)
    assert len(decoded) == 6
    decoded.clear()
    dataset = open_scans(folder)
    dataset[[0, 1, 2, 3, 4, 5]]
    assert not decoded
    write_scan(folder / "3.nii.gz", brain(TINY, 90, 99))
    image = open_scans(folder)[[3]]["image"][0, 0]
    assert [path.name for path in decoded] == ["3.nii.gz"]
    assert np.array_equal(image.numpy(), z_score(brain(TINY, 90, 99)))


def test_damaged_foreign_and_deleted_files_are_made_anew_even_during_a_run(folder, decoded):
    dataset = open_scans(folder)
    expected = dataset[[0, 1, 2, 3]]["image"]
    decoded.clear()
    files = disk_cache(folder, sorted(folder.iterdir()), dtype="float32").files
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(files[2].read_bytes())
    files[2].write_bytes(b"")
    files[3].unlink()
    assert torch.equal(dataset[[0, 1, 2, 3]]["image"], expected)
    assert len(decoded) == 4
    open_scans(folder)[[0, 1, 2, 3]]
    assert len(decoded) == 4


def _write_for_ever(ready, folder):
    disk = disk_cache(folder, [folder / "0.nii.gz"])
    disk.prepare()
    ready.set()
    while True:
        disk.read(0)
        disk.files[0].rename(disk.folder / "last")


def test_a_process_killed_while_writing_leaves_whole_files_or_ignored_ones(folder):
    kept, context = folder.parent / "kept", multiprocessing.get_context("fork")
    expected = read_scan(folder / "0.nii.gz", ANY, "float16")[0]
    for delay in np.linspace(0, 0.03, 12):
        ready = context.Event()
        writer = context.Process(target=_write_for_ever, args=(ready, folder))
        writer.start()
        ready.wait(20)
        time.sleep(delay)
        writer.kill()
        writer.join(20)
        for file in [*kept_files(folder), *kept.glob("last")]:
            assert file.read_bytes().endswith(expected.tobytes())
    (kept / ".part-0-left.npy").write_bytes(b"half")
    assert np.array_equal(disk_cache(folder, [folder / "0.nii.gz"]).read(0)[0], expected)


def _open_at(barrier, folder):
    barrier.wait()
    dataset = open_scans(folder)
    assert torch.equal(dataset[[0]]["image"], open_scans(folder, "none")[[0]]["image"])


def test_processes_that_start_at_once_all_succeed_with_the_same_files(folder):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_open_at, args=(barrier, folder)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(kept_files(folder)) == 6
    assert {path.name for path in (folder.parent / "kept").iterdir()} == {
        "README.txt", *(path.name for path in kept_files(folder))
    }  # fmt: skip


def test_all_bad_scans_are_named_at_once_and_the_good_ones_are_kept(folder, decoded):
    for name in ("1", "4"):
        volume = brain(TINY, 50)
        volume[volume > 0] = np.nan
        write_scan(folder / f"{name}.nii.gz", volume)
    for kind in ("disk", "device"):
        with pytest.raises(ValueError, match=r"(?s)1\.nii\.gz: .*NaN.*4\.nii\.gz: .*NaN"):
            open_scans(folder, kind)
    assert len(kept_files(folder)) == 4


def test_a_cache_that_cannot_be_written_is_one_clear_error_and_may_be_read(folder, monkeypatch):
    (folder.parent / "file").touch()
    message = r"decoded scans cannot be written there .*--cache_dir, --cache device or --cache none"
    with pytest.raises(OSError, match=message):
        open_scans(folder, into=folder.parent / "file")
    open_scans(folder)
    monkeypatch.setattr("os.access", lambda *given: False)
    open_scans(folder)
    write_scan(folder / "0.nii.gz", brain(TINY, 70, 5))
    with pytest.raises(OSError, match=message):
        open_scans(folder)


def test_a_full_disk_and_too_little_memory_are_said_before_anything_is_decoded(
    folder, decoded, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**10}))
    with pytest.raises(OSError, match=r"kept: 6 decoded scans need .* GiB, .* are free: give anot"):
        open_scans(folder)
    monkeypatch.setattr(machine, "free_memory", lambda device: 2**10)
    with pytest.raises(ValueError, match=r"6 scans .* on cpu.*give --cache disk"):
        open_scans(folder, "device")
    assert not decoded


def test_free_memory_is_some(folder):
    assert machine.free_memory(torch.device("cpu")) > 2**20


@pytest.mark.parametrize("values", [{"kind": "memory"}, {"kind": "disk"}])
def test_caches_that_do_not_exist_are_refused(values):
    with pytest.raises(ValueError, match="expected, got"):
        Cache(**values)


class Reached(Exception):
    """Raised with the datasets that a training would read."""


def test_runs_side_by_side_share_one_cache_and_read_alike_whichever_it_is(
    tmp_path, decoded, monkeypatch
):
    def stop(*given, datasets, **more):
        raise Reached(datasets)

    write_cohort(tmp_path / "cohort", {"train": 3, "val": 2})
    monkeypatch.setattr(run, "Trainer", stop)
    images, counts = [], []
    for name, kind in (("a", "disk"), ("b", "disk"), ("c", "device"), ("d", "none")):
        flags = [*training_flags(tmp_path / "cohort", tmp_path / "runs" / name), "--any_grid"]
        if name != "a":  # disk is what is done unasked
            flags += ["--cache", kind]
        with pytest.raises(Reached) as reached:
            train_first_stage.main(flags)
        (sets,) = reached.value.args
        counts.append(len(decoded))
        assert [dataset.cache.kind for dataset in sets] == [kind, kind]
        images.append(torch.cat([sets[0][[0, 1, 2]]["image"], sets[1][[0, 1]]["image"]]))
    assert counts == [5, 5, 10, 15]
    assert len(list((tmp_path / "runs" / "scan_cache").glob("*.npy"))) == 5
    assert images[0].dtype == torch.float16
    assert all(torch.equal(image, images[0]) for image in images)


def test_open_files_stay_few_however_many_scans_are_read(folder):
    disk = disk_cache(folder, [folder / "0.nii.gz"] * 300)
    disk.prepare()
    before = len(list(Path("/dev/fd").iterdir()))
    for index in range(300):
        disk.read(index)
    assert len(list(Path("/dev/fd").iterdir())) <= before + 2


def test_a_jobs_own_memory_limit_counts(tmp_path):
    job = tmp_path / "root" / "slurm" / "job_7"
    job.mkdir(parents=True)
    (tmp_path / "table").write_text("0::/slurm/job_7\n")
    assert machine._job_limits(tmp_path / "table", tmp_path / "root") == []
    (job.parent / "memory.max").write_text("max\n")
    (job / "memory.max").write_text("1000\n")
    (job / "memory.current").write_text("600\n")
    (job / "memory.stat").write_text("anon 400\ninactive_file 150\n")
    assert machine._job_limits(tmp_path / "table", tmp_path / "root") == [550]
    assert machine._job_limits(tmp_path / "missing", tmp_path / "root") == []


def test_a_kept_scan_that_may_not_be_read_is_made_again(folder, monkeypatch):
    dataset = open_scans(folder)
    expected = dataset[[0]]["image"]

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    assert torch.equal(dataset[[0]]["image"], expected)


def test_a_scan_with_more_than_a_brain_on_the_grid_is_read_with_a_warning(tmp_path, recwarn):
    volume = brain(GRID_SHAPE, 50)
    read_scan(write_scan(tmp_path / "brain.nii.gz", volume), InputRule(4), "float32")
    assert not recwarn.list
    head = write_scan(tmp_path / "head.nii.gz", np.where(volume > 0, volume, 20))
    with pytest.warns(UserWarning, match=r"head\.nii\.gz: 100% .* do not trust its age"):
        read_scan(head, InputRule(4), "float32")
