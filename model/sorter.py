"""A network that sorts: L values in, their L ranks out, with a gradient (SoDeep).

Engilberge, Chevallier, Pérez and Cord, "SoDeep: a sorting deep net to learn ranking loss
surrogates", CVPR 2019; the ranking loss of TSAN (Cheng et al., IEEE TMI 2021, eq. 8)
reads ranks from it. Convention throughout: ranks are divided by L, the largest value has 1/L, the
smallest 1, equal values share their average rank.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

HIDDEN_SIZES = {"lstm": 128, "lstmla": 512}  # units in each direction
FILE_FORMAT = "tsan-sorter-1"
# A global batch is never longer; a damaged file must not ask for gigabytes.
LONGEST = 4096


class Sorter(nn.Module):
    """Two bidirectional LSTM layers and a convolution over the whole L x 2h map they make.

    Parameters are called `lstm.*` and `conv1.*` as in the authors' files. Nothing here depends on
    the mode (no dropout, no batch statistics), so `train()` and `eval()` give the same ranks; on a
    GPU a frozen sorter is nevertheless kept in train mode, because cuDNN refuses the backward pass
    of a recurrent network in eval mode.

    Args:
        kind: `lstm` (128 units in each direction) or `lstmla` (512).
        length: L, the number of values sorted at once, from 2 to 4096.

    Raises:
        ValueError: an unknown kind, or a length out of range.
    """

    def __init__(self, kind: str, length: int):
        super().__init__()
        if kind not in HIDDEN_SIZES:
            raise ValueError(f"kind: one of {', '.join(HIDDEN_SIZES)} expected, got {kind!r}")
        if not 2 <= length <= LONGEST:
            raise ValueError(f"length: 2 to {LONGEST} values expected, got {length}")
        self.kind = kind
        self.length = length
        hidden = HIDDEN_SIZES[kind]
        self.lstm = nn.LSTM(1, hidden, num_layers=2, batch_first=True, bidirectional=True)
        # Every rank has its own filter, which sees all positions: the length is fixed by it.
        self.conv1 = nn.Conv1d(length, length, kernel_size=2 * hidden)

    def forward(self, values: Tensor) -> Tensor:
        """The ranks of each row, divided by L, in the precision of the sorter's weights.

        Args:
            values: (B, L) standardised values (see `standardise` in model/losses.py).

        Raises:
            ValueError: the rows do not hold L values.
        """
        if values.ndim != 2 or values.shape[1] != self.length:
            raise ValueError(
                f"this sorter ranks (batch, {self.length}) values, got shape {tuple(values.shape)}"
            )
        # Under autocast neighbouring ranks of a long row would round to one bfloat16 number.
        with torch.autocast(values.device.type, enabled=False):
            column = values.to(self.conv1.weight.dtype).unsqueeze(2)  # (B, L, 1)
            states, _ = self.lstm(column)  # (B, L, 2h)
            return self.conv1(states).squeeze(2)  # (B, L, 1) -> (B, L)


def save_sorter(sorter: Sorter, path: str | Path, *, metrics: dict, command: str) -> None:
    """Writes the weights as float16 with what is needed to rebuild and to judge them.

    Half precision halves the file and moves a rank by about 0.001 of a place.

    Args:
        sorter: the sorter; finite weights below 65504, the largest float16.
        path: the file to write; the caller makes the writing atomic.
        metrics: numbers and strings, in dicts or lists; nothing else would load again.
        command: the command that made it.
    """
    weights = {name: value.detach().cpu().half() for name, value in sorter.state_dict().items()}
    content = {
        "format": FILE_FORMAT,
        "kind": sorter.kind,
        "length": sorter.length,
        "state_dict": weights,
        "metrics": metrics,
        "command": command,
    }
    # Through an open file, because torch writes a path's own name into the archive: the same
    # weights would otherwise have another checksum under every temporary name.
    with Path(path).open("wb") as file:
        torch.save(content, file)


def load_sorter(path: str | Path) -> Sorter:
    """Reads a sorter: a file of `save_sorter`, or one in the authors' (SoDeep's) format.

    The authors' is a dict of `state_dict`, keys perhaps prefixed `module.`, and `args_dict`, an
    argparse.Namespace with `model_type` and `seq_len`. Only tensors, plain values and that one
    class are allowed to be unpickled: a file cannot run code.

    Returns:
        The sorter in float32 on the CPU, in eval mode, frozen.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is something else; the message names it and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such sorter file")
    content = _read_plain(path)
    kind, length, weights = _parts(content, path)
    # Built without storage and filled by assignment: no random numbers are drawn from the caller's
    # generator, and nothing large is allocated before the shapes are known to be right.
    with torch.device("meta"):
        sorter = Sorter(kind, length)
    _require_weights(weights, sorter.state_dict(), path)
    weights = {name: value.float().contiguous().clone() for name, value in weights.items()}
    sorter.load_state_dict(weights, assign=True)
    return sorter.requires_grad_(False).eval()


def _read_plain(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Anything at all may come out of the unpickler when the bytes are not what it expects.
        reason = str(error).strip().splitlines()[:1]
        raise ValueError(
            f"{path}: not a sorter file; only plain tensors, numbers and strings are read "
            f"({type(error).__name__}: {reason[0][:200] if reason else 'no details'})"
        ) from error


def _parts(content: object, path: Path) -> tuple[str, int, dict]:
    """Kind, length and state dict out of either format, checked for type and range."""
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path}: not a sorter file; a dict with a `state_dict` expected")
    published = content.get("args_dict")
    if content.get("format") == FILE_FORMAT:
        kind, length = content.get("kind"), content.get("length")
    elif isinstance(published, argparse.Namespace):
        kind, length = getattr(published, "model_type", None), getattr(published, "seq_len", None)
    else:
        raise ValueError(
            f"{path}: neither `format` {FILE_FORMAT!r} nor the authors' `args_dict` found; "
            f"its keys are {sorted(map(str, content))[:10]}"
        )
    if not isinstance(kind, str) or kind not in HIDDEN_SIZES:
        raise ValueError(
            f"{path}: kind: one of {', '.join(HIDDEN_SIZES)} expected, got {str(kind)[:100]!r}"
        )
    if type(length) is not int or not 2 <= length <= LONGEST:
        raise ValueError(
            f"{path}: length: an integer from 2 to {LONGEST} expected, got {str(length)[:100]!r}"
        )
    weights = {
        str(name).removeprefix("module."): value for name, value in content["state_dict"].items()
    }
    return kind, length, weights


def _require_weights(weights: dict, expected: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError naming every missing, unknown, misshapen or non-finite tensor."""
    problems = [f"{name} is missing" for name in expected if name not in weights]
    for name, value in weights.items():
        if name not in expected:
            problems.append(f"{name[:100]} is unknown")
        elif not isinstance(value, Tensor) or value.layout != torch.strided:
            problems.append(f"{name} is not a dense tensor")
        elif value.shape != expected[name].shape:
            problems.append(
                f"{name} is {tuple(value.shape)}, {tuple(expected[name].shape)} expected"
            )
        elif not value.is_floating_point() or not bool(value.isfinite().all()):
            problems.append(f"{name} does not hold finite floating-point numbers")
    if problems:
        raise ValueError(f"{path}: not the weights of this sorter: {'; '.join(problems[:20])}")
