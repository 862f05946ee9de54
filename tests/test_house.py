"""The rules of the house: which room may import which, what nobody imports, how large parts are.

Read from the sources (ast), so that a rule holds for code that no test runs.
"""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# Each room and the rooms whose modules its own may import, beside those of the room itself. The
# longest name that fits decides.
GROUND_FLOOR = {"utils.cli", "utils.files", "utils.machine", "utils.distributed", "utils.packages"}
ROOMS: dict[str, set[str]] = {
    "model": set(),
    "utils": GROUND_FLOOR,
    "utils.people": GROUND_FLOOR,
    "utils.scans": {"utils.people"} | GROUND_FLOOR,
    "utils.networks": {"model", "utils.people", "utils.scans"} | GROUND_FLOOR,
    "utils.results": {"model", "utils.people", "utils.scans", "utils.networks"} | GROUND_FLOOR,
    "utils.training": {"model", "utils"},
    "analysis": {"model", "utils"},
    "data_preprocessing": {"utils"},
    "prediction": {"data_preprocessing.pipeline", "analysis", "utils", "model"},
    "benchmark": {"data_preprocessing.pipeline", "analysis", "utils", "model"},
}
# Nobody imports a program; each is started by a script or by `python -m`.
PROGRAMS = {
    "train_first_stage", "train_second_stage", "train_sorter", "test", "predict",
    "analysis.brain_pad.__main__", "analysis.brain_pad.out_of_fold",
    "analysis.brain_pad.recalibrate", "analysis.saliency.__main__",
    "benchmark.__main__", "utils.results.baseline", "utils.networks.share",
    *(f"data_preprocessing.{name}" for name in (
        "preprocess", "check_dataset", "split_dataset", "make_folds", "collect_images", "datasets",
        "make_demo_cohort", "make_template",
    )),
}  # fmt: skip
MODULES = sorted(
    path
    for folder in (".", *{room.split(".")[0] for room in ROOMS})
    for path in ((ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))
)
LARGEST_MODULE = 420  # lines
LARGEST_FOLDER = 12  # modules
LONGEST_FUNCTION, LONGER_FUNCTIONS = 40, 10  # lines, and how many functions may have more
MOST_PARAMETERS, FUNCTIONS_WITH_MORE = 6, 2
DEFERRED_IMPORTS = 12  # one per program whose --help would otherwise load torch


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imported(tree: ast.AST) -> set[str]:
    """Names of the modules that the code imports; `from a import b` counts as both a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_in(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def room_of(name: str) -> str | None:
    return max((room for room in ROOMS if is_in(name, {room})), key=len, default=None)


TREES = {module_name(path): ast.parse(path.read_text()) for path in MODULES}
NAMES = set(TREES)
FUNCTIONS = {
    f"{module}:{node.name}:{node.lineno}": node
    for module, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
}


@pytest.mark.parametrize("name", sorted(name for name in NAMES if room_of(name)))
def test_a_room_imports_only_the_rooms_below_it(name):
    room = room_of(name)
    allowed = ROOMS[room] | {room}
    strangers = {
        other
        for other in imported(TREES[name]) & NAMES
        # A package itself holds no more than its docstring and constants.
        if not is_in(other, allowed) and other not in {"utils", "data_preprocessing", "analysis"}
    }
    assert not strangers, f"{name} ({room}) imports {sorted(strangers)}"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_nobody_imports_a_program(name):
    assert not imported(TREES[name]) & PROGRAMS


def test_every_program_that_is_named_here_exists():
    assert PROGRAMS <= NAMES


@pytest.mark.parametrize("path", sorted((ROOT / "model").glob("*.py")), ids=lambda path: path.name)
def test_model_needs_torch_and_the_standard_library_alone(path):
    tops = {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert tops - {"model", "torch"} <= sys.stdlib_module_names


def test_the_plain_form_is_measured_against_ours_and_made_of_nothing_of_it():
    assert not imported(TREES["benchmark.plain"]) & NAMES


def test_matplotlib_is_imported_where_its_backend_is_decided():
    users = {
        name
        for name, tree in TREES.items()
        if any(is_in(module, {"matplotlib"}) for module in imported(tree))
    }
    assert users == {"utils.results.plots"}


def test_no_module_changes_where_python_looks_for_modules():
    changed = [
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"
    ]
    assert not changed


def test_imports_stand_at_the_top_but_for_one_in_each_program():
    deferred = {
        f"{name} imports {node.module}"
        for name, function in FUNCTIONS.items()
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and node.module in NAMES
    }
    others = {text for text in deferred if text.split(":")[0] not in PROGRAMS}
    assert not others
    assert len(deferred) <= DEFERRED_IMPORTS, sorted(deferred)


def test_modules_and_folders_are_small_enough_to_be_read():
    lines = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert not {module_name(path): n for path, n in lines.items() if n > LARGEST_MODULE}
    folders = [path.parent for path in MODULES if path.name != "__init__.py"]
    assert not {str(f): folders.count(f) for f in set(folders) if folders.count(f) > LARGEST_FOLDER}


def test_functions_are_short_but_for_a_few():
    longer = {
        name: node.end_lineno - node.lineno + 1
        for name, node in FUNCTIONS.items()
        if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert len(longer) <= LONGER_FUNCTIONS, longer


def test_functions_take_few_parameters_but_for_two():
    counts = {}
    for name, node in FUNCTIONS.items():
        names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        counts[name] = len([word for word in names if word not in ("self", "cls")])
    more = {name: count for name, count in counts.items() if count > MOST_PARAMETERS}
    assert len(more) <= FUNCTIONS_WITH_MORE, more
