"""Which voxels moved each age: SmoothGrad over the template, one picture per scan."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from analysis.saliency.attribution import SmoothGrad
from analysis.saliency.map_picture import draw_map
from analysis.saliency.maps import to_grid
from data_preprocessing.pipeline.inputs import Source
from prediction.items import Item
from prediction.records import SALIENCY, PredictionRequest
from utils.files import replacing
from utils.scans.volumes import read_scan


def draw_overlays(
    items: Sequence[Item], records: Mapping[Source, dict], request: PredictionRequest
) -> dict[str, Path]:
    """Draws the map of every scan that has an age, unless the picture of this age exists.

    Args:
        items: the scans of the call.
        records: from `predict_all`, which removes the picture of an earlier age.
        request: whose networks gave the ages.

    Returns:
        Pictures by the scan as it was given.
    """
    predictor, method, found = request.predictor, SmoothGrad(), {}
    input_rule = predictor.checkpoint.input_rule
    done = [item for item in items if records[item.source]["ages"]]
    for item in tqdm(done, "saliency", disable=None, leave=False):
        picture = request.scans.path(item.source, SALIENCY)
        if not picture.is_file():
            try:
                voxels, _ = read_scan(Path(records[item.source]["scan"]), input_rule)
                batch = {"image": torch.from_numpy(voxels)[None, None]}
                image = predictor.execution.images(batch)
            except (ValueError, OSError) as error:
                print(f"warning: no saliency: {error}")
                continue
            effect = method(predictor.network, image, item.sex).cpu().numpy()
            title = f"SmoothGrad, {Path(item.source.name).name}"
            figure = draw_map(
                to_grid(effect, input_rule), title=title, unit=method.unit, signed=method.signed
            )
            with replacing(picture) as temporary:
                figure.savefig(temporary, dpi=80)
        found[str(item.source.path)] = picture
    return found
