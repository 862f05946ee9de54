"""Broken checkpoints and flags, and text from outside: nothing runs, each is one message."""

import argparse
import ast
import csv
import inspect
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TINY, brain, write_scan
from test_house import MODULES
from test_structure import PARSERS, ROOT

import test as test_script
from analysis.brain_pad.calibration import complete_row
from model.scaledense import ScaleDense
from model.sorter import load_sorter
from model.tsan import TSAN, SecondStage
from utils.cli import run_entry
from utils.files import as_spreadsheet_text, from_spreadsheet_text, write_tsv
from utils.networks.checkpoint import Checkpoint, load_checkpoint, load_first_stage, save_checkpoint
from utils.people.labels import read_labels
from utils.people.sheets import read_rows
from utils.results.tables import write_table
from utils.scans.volumes import InputRule


class Payload:
    """Calls something harmful when it is unpickled, if anything calls it."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "first.pt"
    save_checkpoint(Checkpoint(ScaleDense(), InputRule(), summary={"epoch": 1}), path)
    return path


@pytest.fixture(scope="module")
def good(whole) -> dict:
    return torch.load(whole, weights_only=True)


PAYLOADS = (
    ("open", lambda proof: Payload(open, proof, "w")),
    ("os.system", lambda proof: Payload(os.system, f"touch {proof}")),
    ("exec", lambda proof: Payload(exec, f"open({proof!r}, 'w')")),
    ("eval", lambda proof: Payload(eval, f"open({proof!r}, 'w')")),
    ("subprocess", lambda proof: Payload(subprocess.call, ["touch", proof])),
    ("getattr", lambda proof: Payload(Path.touch, Path(proof))),
)
PLACES = (
    ("whole file", lambda payload, good: payload),
    ("weights", lambda payload, good: good | {"state_dict": payload}),
    ("one weight", lambda payload, good: good | {"state_dict": {"pre.0.weight": payload}}),
    ("summary", lambda payload, good: good | {"summary": payload}),
    ("arguments of a sorter", lambda payload, good: {"state_dict": {}, "args_dict": payload}),
    ("beside", lambda payload, good: good | {"more": [payload]}),
)


@pytest.mark.parametrize(("place", "put"), PLACES, ids=[case[0] for case in PLACES])
@pytest.mark.parametrize(("call", "make"), PAYLOADS, ids=[case[0] for case in PAYLOADS])
@pytest.mark.parametrize("form", ["archive", "legacy", "plain pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, good, form, call, make, place, put):
    proof, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = put(make(str(proof)), {} if place == "whole file" else {"format": good["format"]})
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    for load in (load_checkpoint, load_first_stage, load_sorter):
        with pytest.raises(ValueError, match=r"evil\.pt: "):
            load(path)
        assert not proof.exists()


def test_payloads_do_what_they_say_where_code_is_allowed_to_run(tmp_path):
    for number, (_, make) in enumerate(PAYLOADS):
        proof = tmp_path / str(number)
        pickle.loads(pickle.dumps(make(str(proof))))
        assert proof.exists()


def without(*names):
    return lambda good: {name: value for name, value in good.items() if name not in names}


def weights(change):
    def make(good):
        state = dict(good["state_dict"])
        change(state)
        return good | {"state_dict": state}

    return make


def first_to(value):
    def change(state):
        name = next(name for name, tensor in state.items() if tensor.dim() > 1)
        state[name] = state[name].clone()
        state[name].view(-1)[0] = value

    return change


def reshaped(state):
    name = next(iter(state))
    state[name] = state[name][:1]


CONTENTS = (
    ("list", lambda good: [1, 2], "a dict expected"),
    ("tensor", lambda good: torch.ones(3), "a dict expected"),
    ("text", lambda good: "hello", "a dict expected"),
    ("nothing", lambda good: None, "a dict expected"),
    ("empty dict", lambda good: {}, "neither a TSAN checkpoint"),
    ("bare state dict", lambda good: good["state_dict"], "neither a TSAN checkpoint"),
    ("another program's", lambda good: {"model": {}, "optimizer": {}}, "neither a TSAN"),
    ("another program's state dict", lambda good: {"state_dict": {"fc.weight": torch.ones(1)}},
     "neither a TSAN"),
    ("state dict of no tensors", lambda good: {"state_dict": {1: 2}}, "neither a TSAN"),
    ("another format", lambda good: good | {"format": "tsan-brain-age-9"}, "neither a TSAN"),
    *((f"without {name}", without(name), "cannot be rebuilt")
      for name in ("options", "state_dict", "preparation", "preprocessing", "summary")),
    *((f"{name} of another type", lambda good, name=name: good | {name: 3}, "cannot be rebuilt")
      for name in ("options", "state_dict", "preparation", "preprocessing")),
    ("summary of another type", lambda good: good | {"summary": 3}, "training cannot be read"),
    *((f"training scans {value}",
       lambda good, value=value: good | {"summary": {"training_hashes": value}},
       "training cannot be read") for value in (3, "abc", [1], [["a"]], {"a": 1})),
    ("unknown option", lambda good: good | {"options": {"colour": 1}}, "cannot be rebuilt"),
    ("unknown width", lambda good: good | {"options": good["options"] | {"width": "wide"}},
     "bad.pt"),
    ("width of another network",
     lambda good: good | {"options": good["options"] | {"width": "released"}}, "cannot be rebuilt"),
    ("sex of another network",
     lambda good: good | {"options": good["options"] | {"use_sex": False}}, "cannot be rebuilt"),
    ("options of a second stage", lambda good: good | {"options": {"second_stage": {}}},
     "cannot be rebuilt"),
    ("unknown resolution",
     lambda good: good | {"preparation": good["preparation"] | {"resolution": 3}}, "bad.pt"),
    ("a weight less", weights(lambda state: state.popitem()), "cannot be rebuilt"),
    ("a weight more", weights(lambda state: state.update(x=torch.ones(1))), "cannot be rebuilt"),
    ("a weight of another shape", weights(reshaped), "cannot be rebuilt"),
    ("a weight that is text", weights(lambda state: state.update({next(iter(state)): "x"})),
     "cannot be rebuilt"),
    ("no weight", weights(dict.clear), "cannot be rebuilt"),
    *((f"a weight of {value}", weights(first_to(value)), "NaN or infinite")
      for value in (float("nan"), float("inf"), -float("inf"))),
)  # fmt: skip


@pytest.mark.parametrize(("name", "make", "message"), CONTENTS, ids=[case[0] for case in CONTENTS])
def test_checkpoint_of_broken_content_is_refused_by_name(tmp_path, good, name, make, message):
    path = tmp_path / "bad.pt"
    torch.save(make(good), path)
    with pytest.raises(ValueError, match=message) as raised:
        load_checkpoint(path)
    assert str(path) in str(raised.value)


def other_archive(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    return (folder / "other.zip").read_bytes()


BYTES = (
    ("empty", lambda data, folder: b""),
    ("text", lambda data, folder: b"hello\n"),
    ("HTML", lambda data, folder: b"<!DOCTYPE html>404"),
    ("another archive", lambda data, folder: other_archive(folder)),
    ("zeros", lambda data, folder: bytes(5000)),
    ("NIfTI", lambda data, folder: b"\x5c\x01\0\0" + bytes(348)),
    *((f"cut to {part} %", lambda data, folder, part=part: data[: len(data) * part // 100])
      for part in (1, 10, 50, 90, 99)),
    ("one byte less", lambda data, folder: data[:-1]),
    ("without its start", lambda data, folder: data[1000:]),
)  # fmt: skip


@pytest.mark.parametrize(("name", "make"), BYTES, ids=[case[0] for case in BYTES])
def test_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, whole, name, make):
    path = tmp_path / "bad.pt"
    path.write_bytes(make(whole.read_bytes(), tmp_path))
    with pytest.raises(ValueError, match=r"bad\.pt: .*checkpoint"):
        load_checkpoint(path)


def test_folder_link_loop_and_missing_checkpoint_are_refused_by_name(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "none.pt", tmp_path / "loop"):
        with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
            load_checkpoint(path)


def test_second_stage_is_no_first_stage(tmp_path):
    path = tmp_path / "second.pt"
    save_checkpoint(Checkpoint(TSAN(ScaleDense(), SecondStage()), InputRule(), summary={}), path)
    with pytest.raises(ValueError, match=r"second\.pt: a second stage"):
        load_first_stage(path)


# Flags.
class Caught(Exception):
    pass


def parser_of(parse) -> argparse.ArgumentParser:
    """The parser that a program parses with, finished but unused."""

    def catch(parser, *_):
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(Caught) as caught:
            parse([])
    return caught.value.args[0]


def bad_words(action: argparse.Action) -> list[str]:
    """What is out of the range of a numeric flag, by its own bounds, or no number at all."""
    bounds = inspect.getclosurevars(action.type).nonlocals if action.type is not int else {}
    kind = bounds.get("kind", int)
    words = ["x", "", "nan", "inf", "-inf", "1e999", "1,5", "0x10", "--1"]
    words += ["1.5"] if kind is int else []
    low, high, above = bounds.get("low"), bounds.get("high"), bounds.get("above")
    if low is not None and low > float("-inf"):
        words += [f"{low - 1:g}", "-1000000"]
    if above is not None:
        words += [f"{above:g}", f"{above - 1:g}"]
    if high is not None and high < float("inf"):
        words += [f"{high + 1:.0f}" if kind is int else f"{high + 1:g}", "1" + "0" * 30]
    return list(dict.fromkeys(words))


def is_numeric(action: argparse.Action) -> bool:
    if action.type is int:
        return action.choices is None
    name = getattr(action.type, "__qualname__", "")
    return name.startswith("number.")


FLAGS = [
    (program, max(action.option_strings, key=len), word)
    for program, parse in PARSERS.items()
    for action in parser_of(parse)._actions
    if action.option_strings and is_numeric(action)
    for word in bad_words(action)
]


@pytest.mark.parametrize("program", PARSERS)
def test_every_number_out_of_range_is_exit_code_2_and_one_message(program, capsys):
    for _, flag, word in [case for case in FLAGS if case[0] == program]:
        with pytest.raises(SystemExit) as exited:
            PARSERS[program]([f"{flag}={word}"])
        assert exited.value.code == 2, (flag, word)
        error = capsys.readouterr().err
        assert error.count("error:") == 1
        assert flag in error.split("error:")[1], (flag, word, error)
        assert "Traceback" not in error


def test_the_flags_were_found():
    assert len({flag for _, flag, _ in FLAGS}) > 30
    assert len(FLAGS) > 500


# End to end.
def test_broken_folder_is_one_message_and_leaves_results_alone(tmp_path, whole, capsys):
    write_scan(tmp_path / "scans" / "a.nii.gz", brain(TINY, 50))
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"")
    output = tmp_path / "out"
    output.mkdir()
    (output / "predictions.tsv").write_text("old")
    argv = ["--test_folder", str(tmp_path / "scans"), "--output_dir", str(output)]
    argv += ["--model_name", str(whole), "--device", "cpu"]
    for more in ([], ["--overwrite"]):
        with pytest.raises(SystemExit) as exited:
            run_entry(lambda more=more: test_script.main([*argv, *more]))
        assert exited.value.code == 1
        error = capsys.readouterr().err
        assert error.count("error:") == 1
        assert "Traceback" not in error
        assert (output / "predictions.tsv").read_text() == "old"
        assert [path.name for path in output.iterdir()] == ["predictions.tsv"]
    assert "b.nii.gz" in error


def test_a_traceback_reaches_who_starts_the_program_only_with_debug(tmp_path):
    # All programs share the code for this; here is one that starts quickly.
    command = [sys.executable, "-m", "data_preprocessing.split_dataset", "--scan_folder", "none"]
    command += ["--labels", "none.csv", "--output_dir", str(tmp_path / "out")]
    environment = os.environ | {"TSAN_DEBUG": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    command.append("--debug")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "no such folder of scans" in done.stderr.splitlines()[-1]


# Text from outside.
NAMES = ("=cmd()", "+1", "@x", "-2+3", "<script>alert(1)</script>", '=LINK("x")', "-1")


def row_of(name: str) -> dict:
    words = dict.fromkeys(("session_id", "site", "message", "model"), name)
    row = {"participant_id": name, "scan": name, "sex": "F", "qc_flag": "ok", "status": "ok"}
    return complete_row(row | words | {"age": 60.0, "predicted_age": 55.5}, None)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_formulas_stay_text_in_the_tables_and_are_read_back(tmp_path, name):
    for table, separator in (("predictions.tsv", "\t"), ("predictions.csv", ",")):
        write_table(tmp_path / table, [row_of(name)], overwrite=True)
        with (tmp_path / table).open(newline="", encoding="utf-8") as file:
            (cells,) = csv.DictReader(file, delimiter=separator)
        for column in ("participant_id", "session_id", "scan", "site", "message"):
            assert cells[column][0] not in "=+-@"
        assert cells["brain_pad"] == "-4.50"  # a number
        header, row = read_rows(tmp_path / table)
        assert row[header.index("scan")] == name
        assert list(read_labels(tmp_path / table).rows) == [name]


def test_numbers_of_any_table_are_left_as_they_are(tmp_path):
    write_tsv(tmp_path / "a.tsv", [["=a", "-1.5", "+2", "-1e-3", "-", "-inf", -3, "@b", "-x"]])
    cells = (tmp_path / "a.tsv").read_text().rstrip("\n").split("\t")
    assert cells == ["'=a", "-1.5", "+2", "-1e-3", "-", "-inf", "-3", "'@b", "'-x"]


@pytest.mark.parametrize("name", [*NAMES, "", "a", "-", "n/a", "O'Neil", "'quoted'"])
def test_what_marks_text_is_taken_off_again(name):
    assert from_spreadsheet_text(as_spreadsheet_text(name)) == name


# No code from data.


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def argument(call: ast.Call, name: str):
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_code_or_a_shell_with_what_it_read(path):
    for name, call in calls(path):
        where = f"{path}:{call.lineno}"
        if name.endswith("torch.load"):
            assert argument(call, "weights_only") == "True", where
        assert argument(call, "shell") in (None, "False"), where
        assert argument(call, "allow_pickle") in (None, "False"), where
        assert name not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, where
        module, _, function = name.rpartition(".")
        if module in {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}:
            assert function not in {"load", "loads", "open", "Unpickler"}, where
        assert not name.startswith(("os.spawn", "os.exec", "subprocess.getoutput")), where
        if name.startswith("subprocess."):
            assert not isinstance(call.args[0], (ast.JoinedStr, ast.Constant)), where


def test_the_rule_on_torch_load_is_of_something():
    assert sum(name.endswith("torch.load") for path in MODULES for name, _ in calls(path)) >= 2
