"""Numbers that must not depend on how, where and in which order they are computed.

Batch sizes, caches, resumed runs and several processes have their tests beside what they test.
"""

import json
import locale
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, brain, training_flags, write_cohort, write_scan

import test
import train_first_stage
from model.losses import AgeLoss
from utils.networks.checkpoint import load_checkpoint
from utils.training.resume import LAST_NAME
from utils.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """4 training, 2 validation and 3 test scans, one of a name that is not ASCII."""
    folder = tmp_path_factory.mktemp("small")
    sheet = write_cohort(folder, {"train": 4, "val": 2, "test": 2})
    write_scan(folder / "test" / "sub-Zoë.nii.gz", brain(TINY, 61.5, 99))
    with sheet.open("a", encoding="utf-8") as file:
        file.write("sub-Zoë,61.5,0\n")
    return folder


def train_and_test(small: Path, output: Path, *more: str) -> tuple[dict, str, dict]:
    """Weights, the table of ages and the figures of a run of one epoch."""
    flags = [*training_flags(small, output), "--any_grid", "--epochs", "1", "--batch_size", "2"]
    train_first_stage.main([*flags, "--cache", "none", "--num_workers", "0", *more])
    test.main(
        [
            *("--test_folder", str(small / "test"), "--labels", str(small / "labels.csv")),
            *("--output_dir", str(output), "--device", "cpu"),
        ]
    )
    return results_in(output)


def results_in(output: Path) -> tuple[dict, str, dict]:
    figures = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    del figures["checkpoint"]  # its path
    weights = torch.load(output / LAST_NAME, weights_only=True)["resume"]["model"]
    lines = (output / "predictions.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith("\tmodel")  # the checkpoint's hash, which holds paths and times
    return weights, "\n".join(line.rpartition("\t")[0] for line in lines), figures


def require_same(found: tuple[dict, str, dict], expected: tuple[dict, str, dict]) -> None:
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(value, expected[0][name]) for name, value in found[0].items())
    assert found[1:] == expected[1:]


@pytest.fixture(scope="module")
def expected(small, tmp_path_factory) -> tuple[dict, str, dict]:
    return train_and_test(small, tmp_path_factory.mktemp("expected") / "run")


@pytest.fixture
def whatever_is_set_is_reset():
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_the_same_seed_gives_the_same_weights_in_deterministic_mode_as_without(
    small, expected, tmp_path, monkeypatch, recwarn, whatever_is_set_is_reset
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    modes = []
    run_epoch = Trainer._train_epoch

    def watched(self):
        modes.append(torch.are_deterministic_algorithms_enabled())
        return run_epoch(self)

    monkeypatch.setattr(Trainer, "_train_epoch", watched)
    require_same(train_and_test(small, tmp_path / "run", "--deterministic"), expected)
    assert modes == [True]
    assert not [warning for warning in recwarn if "determinis" in str(warning.message)]


def test_the_number_of_reading_processes_changes_nothing(small, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "utils.scans.dataset.MEMORY_FOR_ONE_PASS", 0
    )  # test.py reads in them as well
    require_same(train_and_test(small, tmp_path / "run", "--num_workers", "2"), expected)


def test_the_order_in_which_a_file_system_lists_changes_nothing(
    small, expected, tmp_path, monkeypatch
):
    listed, iterate = os.listdir, Path.iterdir
    monkeypatch.setattr(os, "listdir", lambda *given: sorted(listed(*given), reverse=True))
    monkeypatch.setattr(
        Path, "iterdir", lambda self: iter(sorted(iterate(self), key=str, reverse=True))
    )
    names = [path.name for path in (small / "test").iterdir()]
    assert names == sorted(names, reverse=True)
    require_same(train_and_test(small, tmp_path / "run"), expected)


def available(name: str) -> bool:
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_ALL, before)
    return True


IN_ITS_LOCALE = """
import locale, sys, time
from pathlib import Path
locale.setlocale(locale.LC_ALL, "")  # as programs do that a library is embedded in
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from test_invariance import train_and_test
torch.set_num_threads(1)
train_and_test(Path({small!r}), Path({output!r}))
print(time.tzname[0], locale.localeconv()["decimal_point"])
"""


@pytest.mark.parametrize(
    ("name", "zone", "said"),
    [
        ("C", "Asia/Kathmandu", "+0545 ."),
        # Decimal commas.
        pytest.param(
            "de_DE.UTF-8",
            "America/St_Johns",
            "NST ,",
            marks=pytest.mark.skipif(not available("de_DE.UTF-8"), reason="no such locale here"),
        ),
    ],
)
def test_neither_locale_nor_time_zone_changes_anything(small, expected, tmp_path, name, zone, said):
    output = tmp_path / "run"
    code = IN_ITS_LOCALE.format(
        root=str(ROOT), tests=str(ROOT / "tests"), small=str(small), output=str(output)
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LC_ALL": name, "TZ": zone, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == said
    require_same(results_in(output), expected)


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stays(
    small, tmp_path, monkeypatch
):
    epochs = []
    run_epoch, loss_of = Trainer._train_epoch, AgeLoss.forward

    def counted(self):
        epochs.append(self.epoch)
        return run_epoch(self)

    def broken(self, predicted_age, age):
        terms = loss_of(self, predicted_age, age)
        return terms if epochs == [1] else terms | {"total": terms["total"] * float("inf")}

    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    monkeypatch.setattr(AgeLoss, "forward", broken)
    output = tmp_path / "run"
    flags = [*training_flags(small, output), "--any_grid", "--epochs", "3", "--batch_size", "2"]
    with pytest.raises(
        ValueError,
        match=r"epoch 2: the loss is not finite at step 1 .*its scans: train-\d, train-\d; "
        "the checkpoints written so far are good",
    ):
        train_first_stage.main(flags)
    last = load_checkpoint(output / LAST_NAME)
    assert last.summary["epoch"] == last.resume["epoch"] == 1
    assert all(value.isfinite().all() for value in last.model.state_dict().values())
    monkeypatch.setattr(AgeLoss, "forward", loss_of)
    train_first_stage.main([*flags, "--resume"])
    assert epochs == [1, 2, 2, 3]
