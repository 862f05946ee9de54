"""Scripts and documents name real programs and flags; the import rules are in test_house.py."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import predict
import test
import train_sorter
from analysis.brain_pad import __main__ as brain_pad
from analysis.brain_pad import out_of_fold, recalibrate
from analysis.saliency import __main__ as saliency
from benchmark import __main__ as benchmark
from data_preprocessing import (
    check_dataset,
    collect_images,
    datasets,
    make_demo_cohort,
    make_folds,
    make_template,
    preprocess,
    split_dataset,
)
from tests.audit import cuts, heads, interruptions, load, quality, recalibration
from utils.networks import share
from utils.results import baseline
from utils.training import options, recipes

ROOT = Path(__file__).parent.parent
WITH_BUILD_PARSER = (
    train_sorter, predict, share, baseline, benchmark, cuts, heads, quality,
    interruptions, load, recalibration, recalibrate,
    preprocess, collect_images, datasets, make_template, check_dataset, make_demo_cohort,
    split_dataset, make_folds, out_of_fold, brain_pad, saliency,
)  # fmt: skip


def module_name(module) -> str:
    """What stands behind `python -m`; a file at the root is called by its path."""
    path = Path(module.__file__).relative_to(ROOT).with_suffix("")
    if len(path.parts) == 1:
        return f"{path}.py"
    return ".".join(path.parts).removesuffix(".__main__")


PARSERS = {
    "train_first_stage.py": options.parse_first_stage,
    "train_second_stage.py": options.parse_second_stage,
    "test.py": test.parse,
} | {
    module_name(module): (lambda argv, module=module: module.build_parser().parse_args(argv))
    for module in WITH_BUILD_PARSER
}


def shown_flags(name: str, capsys) -> list[str]:
    """The flags that --help lists, each once whatever its aliases; -h is not one."""
    with pytest.raises(SystemExit):
        PARSERS[name](["--help"])
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("  -") and "--help" not in line]


@pytest.mark.parametrize(
    ("name", "most"),
    [("train_first_stage.py", 47), ("train_second_stage.py", 49), ("test.py", 25)],
)
def test_flags_fit_on_a_screen(name, most, capsys):
    assert 10 < len(shown_flags(name, capsys)) <= most


@pytest.mark.parametrize("name", PARSERS)
def test_help_is_answered_without_loading_torch(name, tmp_path):
    program = [str(ROOT / name)] if name.endswith(".py") else ["-m", name]
    command = [sys.executable, "-X", "importtime", *program, "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=True, env=environment
    )
    called = name if name.endswith(".py") else f"python -m {name}"
    assert done.stdout.startswith(f"usage: {called} ")
    assert "--debug" in done.stdout
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    if name.endswith(".py"):  # what is run most: nothing heavy at all
        assert not re.search(r"\| +(numpy|nibabel|pandas)$", done.stderr, re.MULTILINE)


NO_PARSER = {
    ROOT / "script" / name
    for name in (
        "environment.sh", "run_tests.sh", "preprocess_array.sh", "experiments/environment.sh",
    )
}  # fmt: skip
QUICK_START = ROOT / "script" / "quickstart.sh"
# What scripts with arguments of their own are called with.
ARGUMENTS = {
    QUICK_START: ["out"],
    ROOT / "script" / "shipped.sh": ["out"],
    ROOT / "script" / "preprocess.sh": ["scan.nii.gz", "--output_dir", "out"],
    ROOT / "script" / "predict.sh": ["scan.nii.gz", "--output_dir", "out"],
    ROOT / "script" / "recalibrate.sh": ["ages.tsv", "--output", "calibration.json"],
    ROOT / "script" / "prepare_oasis1.sh": ["discs", "table.csv", "out"],
}
SCRIPTS = sorted(
    path
    for path in (ROOT / "script").rglob("*.sh")
    if not path.is_symlink() and path not in NO_PARSER
)


def recorded_calls(script: Path, folder: Path, *flags: str, **variables: str) -> list[list[str]]:
    """What a script calls python with, found by a python that only prints its arguments.

    So does an srun, which then runs what it is given, once, as the task of a step.
    """
    recorder = folder / "bin" / "python"
    recorder.parent.mkdir(exist_ok=True)
    # As if the quick start's environment had been made already.
    (folder / "installed.txt").write_text((ROOT / "requirements.txt").read_text())
    recorder.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done; echo ---\n')
    recorder.chmod(0o755)
    srun = folder / "bin" / "srun"
    srun.write_text(
        '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nSLURM_STEP_NUM_TASKS=8 exec "$@"\n'
    )
    srun.chmod(0o755)
    known = {"PATH": f"{srun.parent}:/usr/bin:/bin", "PYTHON": str(recorder)}
    known["RUNS"] = str(folder / "cv")  # where script/cross_validate.sh logs its trainings
    done = subprocess.run(
        ["bash", str(script), *flags],
        env=known | {"TSAN_VENV": str(folder)} | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    output = done.stdout + "".join(log.read_text() for log in (folder / "cv").glob("*.log"))
    shutil.rmtree(folder / "cv", ignore_errors=True)
    calls = [call.split("\n") for call in output.split("---\n") if call]
    calls = [call for call in calls if program_of(call)]
    assert calls
    return calls


def program_of(call: list[str]) -> tuple[str, list[str]] | None:
    """The program of ours that a call of python runs, and its flags; None where it runs none."""
    for at, word in enumerate(call):
        name = word.removeprefix(f"{ROOT}/")
        if name in PARSERS:
            return name, call[at + 1 :]
    return None


def parse_call(call: list[str]):
    name, flags = program_of(call)
    return PARSERS[name](flags[:-1])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_flag_of_every_script_is_known_to_its_parser(script, tmp_path):
    for call in recorded_calls(script, tmp_path, *ARGUMENTS.get(script, [])):
        parse_call(call)


RECIPES = {"first": recipes.FIRST_STAGE, "second": recipes.SECOND_STAGE}


@pytest.mark.parametrize("recipe", ["ours", "paper"])
@pytest.mark.parametrize("stage", RECIPES)
def test_a_recipe_reaches_training_through_the_scripts(stage, recipe, tmp_path):
    script = ROOT / "script" / f"train_{stage}_stage.sh"
    found = parse_call(recorded_calls(script, tmp_path, "--recipe", recipe, "--epochs", "7")[0])
    expected = RECIPES[stage][recipe] | {"epochs": 7}  # single flags win
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("stage", RECIPES)
def test_scripts_say_the_parsers_own_defaults(stage, tmp_path):
    script = ROOT / "script" / f"train_{stage}_stage.sh"
    scripted = vars(parse_call(recorded_calls(script, tmp_path)[0]))
    needed = ["--train_folder", "a", "--val_folder", "b", "--labels", "c", "--output_dir", "d"]
    if stage == "second":
        needed += ["--first_stage_net", "e"]
    defaults = vars(PARSERS[f"train_{stage}_stage.py"](needed))
    differ = {"train_folder", "val_folder", "labels", "output_dir", "first_stage_net"}
    assert {k: v for k, v in scripted.items() if k not in differ} == {
        k: v for k, v in defaults.items() if k not in differ
    }
    # What the script says of a value that it leaves to the recipe: ours, then paper.
    said = re.findall(r"^([A-Z_]+)= +# (\S+), ([\w.-]+)(?:;|$)", script.read_text(), re.MULTILINE)
    assert len(said) >= 7
    for name, *values in said:
        for recipe, value in zip(("ours", "paper"), values, strict=True):
            held = RECIPES[stage][recipe][name.lower()]
            assert value == held if isinstance(held, str) else float(value) == held


@pytest.mark.parametrize("stage", ["first", "second"])
def test_several_processes_are_started_by_torchrun_with_the_same_flags(stage, tmp_path):
    script = ROOT / "script" / f"train_{stage}_stage.sh"
    one, *more = recorded_calls(script, tmp_path, "--epochs", "7", NPROC="1")
    assert not more
    (two,) = recorded_calls(script, tmp_path, "--epochs", "7", NPROC="2")
    assert two == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *one]
    assert parse_call(two) == parse_call(one)
    (task,) = recorded_calls(script, tmp_path, "--epochs", "7", NPROC="2", SLURM_STEP_NUM_TASKS="8")
    assert task == one  # srun has started the processes already


@pytest.mark.parametrize("stage", ["first", "second"])
def test_slurm_job_runs_each_stage_as_the_tasks_of_a_step_and_may_be_requeued(stage, tmp_path):
    job = ROOT / "script" / "slurm_train.sbatch"
    variables = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "8", "STAGE": stage}
    (call,) = recorded_calls(job, tmp_path, "--epochs", "7", **variables)
    assert call[0] == str(ROOT / f"train_{stage}_stage.py")
    parsed = parse_call(call)
    assert (parsed.resume, parsed.epochs) == (True, 7)
    # sbatch reads its options up to the first command.
    lines = job.read_text().splitlines()
    options = [index for index, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options == list(range(1, 1 + len(options)))
    assert {"--nodes", "--ntasks-per-node", "--time", "--requeue"} <= {
        re.split(r"[ =]", lines[index])[1] for index in options
    }


ARRAYS = {
    "SLURM": {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_ARRAY_TASK_ID": "3"},
    "PBS": {"PBS_O_WORKDIR": str(ROOT), "PBS_ARRAY_INDEX": "3"},
    "SGE": {"SGE_O_WORKDIR": str(ROOT), "SGE_TASK_ID": "3"},
    "LSF": {"LS_SUBCWD": str(ROOT), "LSB_JOBINDEX": "3"},
}


@pytest.mark.parametrize("scheduler", ARRAYS)
def test_array_job_does_the_share_that_its_scheduler_gives_it(scheduler, tmp_path):
    script = ROOT / "script" / "preprocess_array.sh"
    (call,) = recorded_calls(script, tmp_path, "--registration", "affine", **ARRAYS[scheduler])
    parsed = parse_call(call)
    assert (parsed.shard, parsed.jobs, parsed.registration) == ((3, 16), 1, "affine")
    # All schedulers' arrays have as many jobs as there are shares.
    assert set(re.findall(r"1-(\d+)", script.read_text())) == {"16"}


def test_published_script_names_are_links_to_ours():
    for name in ("train_first_stage", "train_second_stage", "test_first_stage",
                 "test_second_stage"):  # fmt: skip
        link = ROOT / "script" / f"bash_{name}.sh"
        assert link.is_symlink()
        assert link.resolve() == ROOT / "script" / f"{name}.sh"


DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "pretrained/README.md",
    ROOT / "data_preprocessing/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINES_AT_MOST = {
    "README.md": 220,
    "docs/RESULTS.md": 160,
    "docs/RELIABILITY.md": 275,
    "docs/PERFORMANCE.md": 200,
}
HOW_TO_PAGES = ("data", "preprocess", "quality", "train", "predict", "analyse", "paper")


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document; repeated ones get -1, -2 ..."""
    found: list[str] = []
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        repeated = sum(name == slug or name.startswith(f"{slug}/") for name in found)
        found.append(f"{slug}/{repeated}" if repeated else slug)
    return {name.replace("/", "-") for name in found}


def commands(document: Path) -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", document.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_the_documents_is_understood(document, tmp_path):
    for line in commands(document):
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if word in PARSERS:
                PARSERS[word](words[at + 1 :])
            elif words[at - 1] == "-m" and (ROOT / word.split(".")[0]).is_dir():
                assert word == "tests.audit.fuzz_readers", f"no program: {line}"
            elif word.startswith("script/"):
                assert (ROOT / word).is_file(), line
                if ROOT / word in set(SCRIPTS) - {QUICK_START}:
                    for call in recorded_calls(ROOT / word, tmp_path, *words[at + 1 :]):
                        parse_call(call)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading_that_exist(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path), target


def test_the_tests_that_the_table_of_strangers_names_exist():
    table = [line for line in (ROOT / "docs" / "RELIABILITY.md").read_text().splitlines()
             if line.startswith("|") and "test_" in line]  # fmt: skip
    assert len(table) > 40
    for line in table:
        cell = line.rstrip(" |").rpartition("|")[2]
        named = re.findall(r"(test_\w+\.py)(?: -k (?:\"([^\"]+)\"|(\w+)))?", cell)
        assert named, line
        for file, several, one in named:
            text = (ROOT / "tests" / file).read_text()
            for word in set((several or one).split()) - {"or", "and", "not"}:
                assert word in text, f"{file} has nothing named {word}: {line}"


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\((?:docs/)?([A-Za-z_]+\.md)", (ROOT / "README.md").read_text()))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= linked


def test_documents_stay_short():
    most = LINES_AT_MOST | {f"docs/{name}.md": 150 for name in HOW_TO_PAGES}
    for name, lines in most.items():
        assert len((ROOT / name).read_text().splitlines()) <= lines, name
    assert len((ROOT / "README.md").read_text().split()) <= 1900


def test_ci_runs_the_test_command_of_the_readme_before_it_installs_more():
    (command,) = [line for line in commands(ROOT / "README.md") if "run_tests.sh" in line]
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    (tested,) = [at for at, line in enumerate(steps) if line.startswith(command)]
    (installed,) = [at for at, line in enumerate(steps) if line.startswith("make_environment")]
    assert tested < installed
    assert "requirements-preprocessing.txt" in steps[installed]
    assert "-m engines" in "".join(steps[installed:])
    assert (
        "make_environment requirements.txt requirements-dev.txt\n"
        in (ROOT / "script" / "run_tests.sh").read_text()
    )


def test_the_entry_points_are_thin():
    for name in ("train_first_stage.py", "train_second_stage.py", "test.py", "train_sorter.py"):
        assert len((ROOT / name).read_text().splitlines()) < 110, name
    assert callable(test.main)
