"""Which voxels moved each age: SmoothGrad over the template, a picture a scan."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from analysis.saliency.attribution import SmoothGrad
from analysis.saliency.map_picture import draw_map
from analysis.saliency.maps import to_grid
from data_preprocessing.pipeline.inputs import Source
from prediction.items import Item
from utils.files import replacing
from utils.networks.predictor import Predictor
from utils.scans.dataset import ScanDataset


def draw_overlays(
    items: Sequence[Item],
    records: Mapping[Source, dict],
    predictor: Predictor,
    folder: Path,
) -> dict[str, Path]:
    """Draws the map of every scan that has an age, unless it is there: a new age removes it.

    Args:
        items: the scans of the call.
        records: from `predict_all`.
        predictor: that gave the ages.
        folder: for results.

    Returns:
        Pictures by the scan as it was given.
    """
    found = {}
    done = [item for item in items if records[item.source]["ages"]]
    for item in tqdm(done, "saliency", disable=None, leave=False):
        picture = item.overlay_path(folder)
        if not picture.is_file():
            try:
                scan = predictor.scan(records[item.source]["scan"], item.sex)
                dataset = ScanDataset([scan], predictor.checkpoint.input_rule)
                image = predictor.execution.images(dataset[[0]])
            except (ValueError, OSError) as error:
                print(f"warning: no saliency: {error}")
                continue
            _draw(image, item, predictor, picture)
        found[str(item.source.path)] = picture
    return found


def _draw(image: Tensor, item: Item, predictor: Predictor, picture: Path) -> None:
    method, input_rule = SmoothGrad(), predictor.checkpoint.input_rule
    effect = method(predictor.network, image, item.sex).cpu().numpy()
    figure = draw_map(
        to_grid(effect, input_rule),
        title=f"SmoothGrad, {Path(item.source.name).name}",
        unit=method.unit,
        signed=method.signed,
    )
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=80)
