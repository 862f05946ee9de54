"""What every entry point shares: checked flag types, switches that mean what they say, and errors.

Nothing heavy is imported here, so `--help` answers at once.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.packages import explain_missing

SHOWN_PROBLEMS = 20


TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off")
# How messages of torch and joblib start when one of a program's processes is killed.
ENDED_PROCESS = ("DataLoader worker", "Pin memory thread", "A worker process managed by")
DEBUG = "TSAN_DEBUG"  # in the environment; 1: tracebacks are shown
# Rounds that a thread of GNU OpenMP, which torch uses on Linux, waits awake before it sleeps; the
# library's own default is 300,000. Measured: docs/PERFORMANCE.md, "Busy cores".
SPIN_COUNT = "10000"
NO_DEFAULTS = (None, "", [])  # of flags that may be left out


def new_parser(description: str, **kwargs) -> argparse.ArgumentParser:
    """A parser that shows defaults, refuses shortened flags and has `--debug`."""
    if module := getattr(sys.modules["__main__"], "__spec__", None):  # run by `python -m`
        kwargs.setdefault("prog", f"python -m {module.name.removesuffix('.__main__')}")
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        **kwargs,
    )
    parser.add_argument(
        "--debug", action=ShowTracebacks, nargs=0, dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help=f"show tracebacks of errors, as {DEBUG}=1 in the environment does",
    )  # fmt: skip
    return parser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each flag that has one."""

    def _get_help_string(self, action):
        has_none = any(action.default == nothing for nothing in NO_DEFAULTS)
        return action.help if has_none else super()._get_help_string(action)


def shows_tracebacks() -> bool:
    """Whether tracebacks are asked for, with `--debug` or in the environment."""
    return os.environ.get(DEBUG) == "1"


class ShowTracebacks(argparse.Action):
    """`--debug` sets the environment variable, which started processes inherit.

    No flag is stored, so that checkpoints and resumed runs do not compare it.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        """Turns tracebacks on for this process and those it starts."""
        os.environ[DEBUG] = "1"


class Switch(argparse.BooleanOptionalAction):
    """A boolean flag: `--flag`, `--no-flag`, and the published style `--flag False`."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs):
        kwargs.pop("type", None)
        super().__init__(option_strings, dest, **kwargs)
        self.nargs = "?"
        self.metavar = "BOOL"

    def __call__(self, parser, namespace, values, option_string=None):
        """Stores the boolean that `--flag`, `--no-flag` or `--flag WORD` stands for."""
        negated = option_string.startswith("--no-")
        if values is None:
            setattr(namespace, self.dest, not negated)
            return
        word = str(values).lower()
        if negated or word not in TRUE_WORDS + FALSE_WORDS:
            parser.error(f"argument {option_string}: true or false expected, got {values!r}")
        setattr(namespace, self.dest, word in TRUE_WORDS)


def number(
    kind: type,
    *,
    low: float = float("-inf"),
    high: float = float("inf"),
    above: float | None = None,
) -> Callable[[str], float]:
    """An argparse type: a finite int or float in [low, high], above `above` where given."""

    def parse(text: str):
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"a number ({kind.__name__}) expected, got {text!r}"
            ) from None
        finite = float("-inf") < value < float("inf")
        if not (finite and low <= value <= high) or (above is not None and not value > above):
            bound = f"above {above:g}" if above is not None else f"at least {low:g}"
            bound = bound if finite else "a finite number"
            limit = f" and at most {high:g}" if high != float("inf") else ""
            raise argparse.ArgumentTypeError(f"{bound}{limit} expected, got {text}")
        return value

    return parse


def regular_expression(text: str) -> re.Pattern:
    """An argparse type: a compiled regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"a regular expression expected: {error}") from None


class Terminated(KeyboardInterrupt):
    """Raised upon SIGTERM."""


def run_entry(main: Callable[[], None]) -> None:
    """Runs `main`; what the user can mend (ValueError, OSError) is one message and exit code 1.

    With `--debug`, or TSAN_DEBUG=1 in the environment, the traceback is shown as well. `main` is to
    import torch, see `wait_asleep`.
    """
    wait_asleep()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`: joblib's processes need one
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - it stays open
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be in no encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except ModuleNotFoundError as error:
        if shows_tracebacks() or not (text := explain_missing(error)):
            raise
        print(f"error: {text}", file=sys.stderr)
        sys.exit(1)
    except (ValueError, OSError) as error:
        if shows_tracebacks():
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        # torch raises it wherever the program is when a process ends that reads for it.
        if shows_tracebacks() or not str(error).startswith(ENDED_PROCESS):
            raise
        reason = str(error).partition(". ")[0].strip()
        print(
            f"error: a process that reads scans has ended ({reason}), for want of memory perhaps: "
            "give fewer --num_workers or --jobs; --resume continues a training",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        print(str(interruption) or "interrupted", file=sys.stderr)
        # What a shell reports of a program that the signal ended.
        sys.exit(143 if isinstance(interruption, Terminated) else 130)


def wait_asleep() -> None:
    """Lets threads that wait for another one sleep soon, so that they leave busy cores to others.

    It holds for this process and those that it starts, where torch has not been imported yet. Who
    has set OMP_WAIT_POLICY or GOMP_SPINCOUNT in the environment is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def raise_all(problems: list[str]) -> None:
    """Raises one ValueError that lists `problems`, if there are any."""
    if not problems:
        return
    shown = problems[:SHOWN_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    raise ValueError("\n  ".join(shown))


def add_label_flags(group: argparse._ArgumentGroup, *, required: bool) -> None:
    """The label sheets."""
    group.add_argument(
        "--labels", "--excel_path", nargs="+", required=required, metavar="SHEET",
        help="name or id, age in years, sex (0 female, 1 male), and site where there are several: "
        ".xls, .xlsx, .csv or .tsv, with a header row or without; one or several",
    )  # fmt: skip
    group.add_argument("--site", metavar="NAME", help="of the scans of which no sheet gives a site")
    group.add_argument(
        "--sex_codes", nargs="+", metavar="CODE=SEX",
        help="for sheets with other codes, such as 1=male 2=female",
    )  # fmt: skip


def add_intensity_flag(group: argparse._ActionsContainer, **default: str) -> None:
    """What brightness a network reads; the words are those of `utils.scans.volumes.InputRule`."""
    group.add_argument(
        "--intensity", choices=("tissue", "brain", "authors"), **default,
        help="tissue: a window around the border of grey and white matter, alike for all scanners; "
        "or z-scores with a background of 0 (brain) or of -mean/SD, as the authors' format means",
    )  # fmt: skip


def add_device_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where and how exactly it computes; returns the group for more of the kind."""
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--device", default="auto", help="auto: a GPU if any; several processes take one each")
    add(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto",
        help="auto: bfloat16 on a GPU that has it (test.py: where ages of a few scans agree with "
        "float32 to 0.1 years), float32 on a CPU",
    )  # fmt: skip
    add(
        "--threads", type=number(int, low=0), default=0,
        help="CPU threads; 0: as many as the process may use",
    )  # fmt: skip
    return group


def add_machine_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """`add_device_flags`, compilation and the processes that read scans; returns the group."""
    group = add_device_flags(parser)
    group.add_argument(
        "--compile", action=Switch, default=False,
        help="torch.compile; takes minutes to start, worth trying on a GPU",
    )  # fmt: skip
    group.add_argument(
        "--num_workers", type=number(int, low=0), default=2,
        help="processes that read scans: of --cache none, and on a GPU of --cache disk",
    )  # fmt: skip
    return group


def add_subject_pattern(parser: argparse._ActionsContainer) -> None:
    """How the person is found in a scan's name, see `find_person`."""
    parser.add_argument(
        "--subject_pattern",
        type=regular_expression,
        help="regular expression for the person in a scan's name (its first group, or the whole "
        "match); without it sub-01 of BIDS and OAS1_0001 of OASIS names, else the whole name",
    )
