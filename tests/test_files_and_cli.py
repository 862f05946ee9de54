import argparse
import hashlib
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from utils.cli import SPIN_COUNT, Switch, new_parser, number, run_entry
from utils.files import hash_file, replacing, require_absent, require_empty


def test_failed_writing_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with (
        pytest.raises(RuntimeError),
        replacing(target, overwrite=True) as temporary,
    ):
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_overwritten_unasked(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("1")
    with pytest.raises(FileExistsError, match=r"a\.txt would be overwritten"), replacing(target):
        pass
    with replacing(target, overwrite=True) as temporary:
        temporary.write_text("2")
    assert target.read_text() == "2"
    with pytest.raises(FileExistsError, match=r"a\.txt would be overwritten"):
        require_absent(tmp_path / "other", target)


@pytest.mark.parametrize("size", [0, 5, (1 << 20) + 1])
def test_a_file_has_the_digest_of_its_bytes_however_long(tmp_path, size):
    content = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert hash_file(tmp_path / "a") == hashlib.sha256(content[:size]).hexdigest()


def test_folders_must_be_empty_and_be_folders(tmp_path):
    require_empty(tmp_path)
    require_empty(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="not empty: give a new or empty --output_dir, or x"):
        require_empty(tmp_path, instead="or x")
    with pytest.raises(FileExistsError, match="is not a folder"):
        require_empty(tmp_path / "file")


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        ([], True),
        (["--use_sex"], True),
        (["--no-use_sex"], False),
        (["--use_gender", "False"], False),
        (["--use_gender", "true"], True),
        (["--use_sex", "0"], False),
        (["--use_gender", "no"], False),
    ],
)
def test_switches_mean_what_they_say(argv, value):
    parser = new_parser("")
    parser.add_argument("--use_sex", "--use_gender", action=Switch, default=True)
    assert parser.parse_args(argv).use_sex is value


@pytest.mark.parametrize("argv", [["--use_sex", "maybe"], ["--no-use_sex", "true"], ["--use", "1"]])
def test_other_words_and_shortened_flags_are_refused(argv):
    parser = new_parser("")
    parser.add_argument("--use_sex", action=Switch, default=True)
    with pytest.raises(SystemExit):
        parser.parse_args(argv)


def test_numbers_are_held_within_their_bounds():
    rate = number(float, above=0, high=1)
    assert rate("0.5") == 0.5
    for text in ("0", "2", "nan", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected, got"):
            rate(text)
    assert number(int, low=0)("0") == 0


def test_errors_of_the_user_are_one_message_without_traceback(capsys, monkeypatch):
    def fail():
        raise ValueError("scan.nii: expected this")

    monkeypatch.delenv("TSAN_DEBUG", raising=False)
    with pytest.raises(SystemExit) as exited:
        run_entry(fail)
    assert exited.value.code == 1
    assert capsys.readouterr().err == "error: scan.nii: expected this\n"
    monkeypatch.setenv("TSAN_DEBUG", "1")
    with pytest.raises(ValueError, match="expected this"):
        run_entry(fail)


def test_debug_shows_the_traceback_and_is_no_flag_of_the_run(monkeypatch):
    def fail():
        assert vars(new_parser("").parse_args(["--debug"])) == {}
        raise ValueError("scan.nii: expected this")

    monkeypatch.setenv("TSAN_DEBUG", "")
    with pytest.raises(ValueError, match="expected this"):
        run_entry(fail)
    assert os.environ["TSAN_DEBUG"] == "1"  # processes that are started show theirs too


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses another OpenMP there")
def test_waiting_threads_of_a_started_program_sleep_soon_unless_the_user_says_how_they_wait():
    own = {"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "ACTIVE"}
    command = [sys.executable, str(ROOT / "test.py"), "--test_folder", "none", "--output_dir"]
    usual = {name: value for name, value in os.environ.items() if not re.match("G?OMP_", name)}
    # The library itself says, when it is loaded, what holds.
    usual |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([*command, "none"], env=usual | more, stderr=subprocess.PIPE, text=True)
        for more in ({}, *own)
    ]
    said = [task.communicate(timeout=300)[1] for task in started]
    counts = [re.search(r"GOMP_SPINCOUNT = '(\d+)'", text)[1] for text in said]
    assert counts[:2] == [SPIN_COUNT, "77"]
    assert int(counts[2]) > 10**9  # what the library makes of ACTIVE


def test_help_shows_the_defaults_that_there_are():
    parser = new_parser("")
    parser.add_argument("--none", help="no default")
    parser.add_argument("--empty", nargs="*", default=[], help="none either")
    parser.add_argument("--zero", type=int, default=0, help="a number")
    parser.add_argument("--off", action=Switch, default=False, help="a switch")
    text = parser.format_help()
    assert re.findall(r"\(default: (.*)\)", text) == ["0", "False"]


def test_a_name_in_no_encoding_can_be_printed(tmp_path):
    program = "from utils.cli import run_entry; run_entry(lambda: print('caf\\udce9.nii'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "caf\\udce9.nii\n")


def test_cross_validation_ends_after_all_of_its_runs_and_says_what_it_keeps(tmp_path):
    python = tmp_path / "python"  # fold 0 fails at once, fold 1 takes a second
    python.write_text(
        '#!/bin/bash\n[ "$1" != -c ] || exit 0\n'
        '[[ "$*" != *--fold\\ 0* ]] || exit 1\n'
        f"sleep 1; echo over >> {tmp_path}/over\n"
    )
    python.chmod(0o755)
    settings = {"PYTHON": python, "RUNS": tmp_path, "ONLY": "0 1 2", "JOBS": "3"}
    (tmp_path / "default" / "2").mkdir(parents=True)
    (tmp_path / "default" / "2" / "finished").touch()
    done = subprocess.run(
        ["bash", ROOT / "script" / "cross_validate.sh"],
        env=os.environ | {name: str(value) for name, value in settings.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error: fold 0 stopped" in done.stdout
    assert f"fold 2: finished before, kept as it is: {tmp_path}/default/2" in done.stdout
    assert (tmp_path / "default" / "1" / "finished").is_file()
