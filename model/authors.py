"""The key map between our state dicts and those of the authors' released networks, both ways.

Their checkpoints hold `state_dict` with the prefix `module.` on every key. They always carry both
closing heads, with and without sex, so the keys do not tell whether sex is used: the caller says.
Ours carry the head in use; exporting writes zeros for the other.
"""

import re

import torch
from torch import Tensor

from model.scaledense import ScaleDense
from model.tsan import SecondStage

# Ours on the left; what the pattern leaves untouched is the same on both sides.
KEY_MAP = (
    (r"^encoder\.backbone\.stem\.", r"pre."),
    (r"^encoder\.backbone\.blocks\.(\d)\.", r"block.\1.block."),
    (r"\.unit1\.convolution\.", r".0."),
    (r"\.unit1\.norm\.", r".1."),
    (r"\.unit2\.convolution\.", r".3."),
    (r"\.unit2\.norm\.", r".4."),
    (r"\.excite\.squeeze\.", r".6.FC1."),
    (r"\.excite\.expand\.", r".6.FC2."),
    (r"\.branches\.0\.", r".conv1."),
    (r"\.branches\.1\.", r".conv2."),
    (r"\.branches\.2\.", r".conv3."),
    (r"\.branches\.3\.", r".conv4."),
    (r"^encoder\.sex_branch\.", r"male_fc."),
    (r"^age_branch\.", r"dis_fc."),
)
IMAGE_BRANCH = {ScaleDense: "deep_fc.", SecondStage: "fc."}
HEAD = {True: "end_fc_with_gender.", False: "end_fc_without_gender."}


def detect_stage(state_dict: dict[str, Tensor]) -> int | None:
    """1 or 2 when the keys are those of the authors' first or second network, else None."""
    keys = {str(key).removeprefix("module.") for key in state_dict}
    if "pre.0.weight" not in keys:
        return None
    if "deep_fc.0.weight" in keys:
        return 1
    return 2 if {"fc.0.weight", "dis_fc.0.weight"} <= keys else None


def from_authors(state_dict: dict[str, Tensor], *, use_sex: bool) -> ScaleDense | SecondStage:
    """Builds the authors' network of either stage, with their closing ReLU on the first.

    Args:
        state_dict: keys and shapes as in tests/golden/authors_state_dict_keys.json, with or
            without the prefix `module.`.
        use_sex: which of their two heads is used (their flag `--use_gender`).

    Raises:
        ValueError: keys or shapes that are not those of the released networks, all named.
    """
    theirs = {str(key).removeprefix("module."): value for key, value in state_dict.items()}
    stage = detect_stage(theirs)
    if stage is None:
        raise ValueError("the keys are those of neither of the authors' networks")
    with torch.device("meta"):  # no memory or time for weights that are replaced at once
        if stage == 1:
            network = ScaleDense("released", use_sex=use_sex, final_relu=True)
        else:
            network = SecondStage("released", use_sex=use_sex)
    expected = to_authors(network)
    problems = [f"{key} is missing" for key in expected if key not in theirs]
    problems += [f"{key} is not a part of it" for key in theirs if key not in expected]
    problems += [
        f"{key} has shape {tuple(theirs[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in theirs and theirs[key].shape != value.shape
    ]
    if problems:
        raise ValueError(
            f"not the authors' released network of stage {stage}: " + "; ".join(problems[:10])
        )
    ours = {key: theirs[_their_key(network, key)] for key in network.state_dict()}
    network.load_state_dict(ours, assign=True)
    return network.eval()


def to_authors(network: ScaleDense | SecondStage) -> dict[str, Tensor]:
    """The network's weights under the authors' keys, zeros for the head it does not have.

    Raises:
        ValueError: the network is not of the released width.
    """
    encoder = network.encoder
    if encoder.width != "released":
        raise ValueError(
            f"the authors' format holds the released width only, this network is {encoder.width}"
        )
    theirs = {_their_key(network, key): value for key, value in network.state_dict().items()}
    other_inputs = network.head[0].in_features + (-8 if encoder.use_sex else 8)
    unused = HEAD[not encoder.use_sex]
    shapes = {
        f"{unused}0.weight": (16, other_inputs),
        f"{unused}0.bias": (16,),
        f"{unused}1.weight": (1, 16),
        f"{unused}1.bias": (1,),
    }
    if not encoder.use_sex:
        shapes |= {"male_fc.0.weight": (16, 2), "male_fc.0.bias": (16,)}
        shapes |= {"male_fc.1.weight": (8, 16), "male_fc.1.bias": (8,)}
    return theirs | {key: torch.zeros(shape) for key, shape in shapes.items()}


def _their_key(network: ScaleDense | SecondStage, our_key: str) -> str:
    key = re.sub(r"^head\.", HEAD[network.encoder.use_sex], our_key)
    key = re.sub(r"^encoder\.image_branch\.", IMAGE_BRANCH[type(network)], key)
    for pattern, replacement in KEY_MAP:
        key = re.sub(pattern, replacement, key)
    return key
