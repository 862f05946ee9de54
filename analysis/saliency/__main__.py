r"""Which regions of the brain move the age that a checkpoint gives: maps, a table and a picture.

    python -m analysis.saliency --checkpoint runs/first/ScaleDense_best_model.pth.tar \
        --scan_folder data/test --labels data/Dataset.xls --output_dir saliency

Written, all on the MNI152 2 mm grid: a map of each scan (maps/), their mean (mean_map.nii.gz),
regions.tsv (regions.py), saliency.png and saliency.json. The same is done with the
network's weights drawn anew; where that gives much the same map, the map shows what scans look like
and not what the network has learnt (Adebayo et al. 2018, arXiv 1810.03292), and a warning says so.

A map says what a network reacts to. It does not say that a region ages, nor that its tissue rather
than its size or its border matters.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nibabel
import numpy as np

from utils.cli import Switch, add_label_flags, new_parser, number, run_entry
from utils.files import replacing, require_absent, write_json, write_tsv
from utils.scans.volumes import BRAIN_BOX, GRID_AFFINE, GRID_SHAPE, InputRule

METHODS = ("smoothgrad", "occlusion")
ALIKE = 0.5  # rank correlation with the maps of random weights from which on a map is doubted
RESULTS = ("saliency.json", "regions.tsv", "saliency.png", "mean_map.nii.gz")
MEANING = {
    "smoothgrad": "above 0: adds to the age",
    "occlusion": "below 0: hiding it makes the brain look younger",
}


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Map which regions of the brain move the age that a checkpoint gives.")
    parser.add_argument(
        "--checkpoint", nargs="+", required=True, metavar="FILE", help="one, or several as a mean"
    )
    parser.add_argument("--scan_folder", required=True, metavar="DIR", help="scans on the grid")
    add_label_flags(parser, required=False)
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="for the results")
    parser.add_argument("--overwrite", action=Switch, default=False, help="replace results")
    parser.add_argument("--method", choices=METHODS, default="smoothgrad", help="kind of map")
    parser.add_argument("--limit", type=number(int, low=1), help="only the first so many scans")
    parser.add_argument(
        "--random_weights", action=Switch, default=True,
        help="compare with maps of the network with weights drawn anew; doubles the time",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of random weights")
    group = parser.add_argument_group("smoothgrad")
    group.add_argument("--copies", type=number(int, low=1), default=16, help="noisy copies a scan")
    group.add_argument(
        "--noise", type=number(float, low=0), default=0.5, help="SD of the noise, in a brain's SDs"
    )
    group.add_argument(
        "--times_input", action=Switch, default=False,
        help="gradient times z-score (years, signed) instead of its magnitude (years per SD)",
    )  # fmt: skip
    group = parser.add_argument_group("occlusion")
    group.add_argument("--cube", type=number(int, low=2), default=16, help="side, mm")
    group.add_argument("--stride", type=number(int, low=2), default=8, help="between cubes, mm")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch_size", type=number(int, low=1), default=8, help="views at a time")
    group.add_argument("--device", default="auto", help="auto: a GPU when there is one")
    group.add_argument(
        "--threads", type=number(int, low=0), default=0,
        help="CPU threads; 0: as many as the process may use",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> dict:
    """Writes maps, table and picture; returns what saliency.json holds."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from analysis.saliency.attribution import with_random_weights
    from utils.machine import use_machine_well
    from utils.networks.checkpoint import load_ensemble
    from utils.networks.execution import choose_execution
    from utils.scans.dataset import open_for_one_pass

    use_machine_well(args.threads)
    execution = choose_execution(args.device, "float32")
    checkpoint = load_ensemble(args.checkpoint)
    # A scan off the grid has no place on it.
    input_rule = replace(checkpoint.input_rule, any_grid=False)
    method = build_method(args, input_rule.resolution)
    folder = Path(args.output_dir)
    scans, comparison = open_scans(args, checkpoint, input_rule)
    files = [map_of(folder, scan) for scan in scans]
    if not args.overwrite:
        require_absent(*(folder / name for name in RESULTS), *files)
    dataset = open_for_one_pass(scans, input_rule)
    random = with_random_weights(checkpoint.model, seed=args.seed) if args.random_weights else None

    def keep(place: int, effect: np.ndarray) -> None:
        save_map(files[place], effect, overwrite=args.overwrite)

    started = time.perf_counter()
    maps = average_maps(checkpoint.model, dataset, method, execution, keep=keep)
    report = {
        "checkpoint": str(checkpoint.source),
        "stage": checkpoint.stage,
        "method": args.method,
        "settings": asdict(method),
        "unit": method.unit,
        "signed": method.signed,
        "scans": len(scans),
        "seconds_per_scan": (time.perf_counter() - started) / len(scans),
        "preprocessing": comparison,
        "rank_correlation_with_random_weights": None,
    }
    if random is not None:
        others = average_maps(random, dataset, method, execution)
        report["rank_correlation_with_random_weights"] = rank_correlation(maps, others)
    write_results(report, maps, folder, overwrite=args.overwrite)
    return report


def build_method(args: argparse.Namespace, resolution: int):
    """The method that the flags describe, for voxels of `resolution` mm.

    Raises:
        ValueError: a cube or stride that is no whole number of voxels, or leaves some out.
    """
    from analysis.saliency.attribution import Occlusion, SmoothGrad

    if args.method == "smoothgrad":
        return SmoothGrad(args.copies, args.noise, args.times_input, args.batch_size, args.seed)
    for name in ("cube", "stride"):
        if getattr(args, name) % resolution:
            raise ValueError(
                f"--{name} {getattr(args, name)}: a multiple of {resolution} mm expected, the side "
                "of the voxels that the network reads"
            )
    if args.stride > args.cube:
        raise ValueError(f"--stride {args.stride}: at most the --cube of {args.cube} mm expected")
    return Occlusion(args.cube // resolution, args.stride // resolution, args.batch_size)


def open_scans(args: argparse.Namespace, checkpoint, input_rule: InputRule) -> tuple[list, dict]:
    """The scans that the flags name, and how they were made against the training scans."""
    from utils.networks.predictor import note_unknown_sexes
    from utils.scans.cohort import describe, open_cohort
    from utils.scans.labels import parse_sex_codes, read_labels
    from utils.scans.provenance import compare_provenance, format_comparison

    labels = None
    if args.labels:
        labels = read_labels(args.labels, sex_codes=parse_sex_codes(args.sex_codes))
    scans = open_cohort(args.scan_folder, labels, input_rule)[: args.limit]
    comparison = compare_provenance([scan.path for scan in scans], checkpoint.provenance)
    print(f"stage {checkpoint.stage}, {checkpoint.source}\n{describe(scans)}")
    print(format_comparison(comparison))
    if checkpoint.input_rule.any_grid:
        print("note: trained with --any_grid; these scans may lie otherwise than those it knows")
    note_unknown_sexes(checkpoint, scans)
    if checkpoint.stage == 2 and args.method == "smoothgrad":
        print("note: gradients of the second stage's residual; occlusion sees the whole cascade")
    return scans, comparison


def input_affine(input_rule: InputRule) -> np.ndarray:
    """(4, 4): voxel of the network's input, in LAS order, to MNI152 mm.

    At 4 mm a voxel is the mean of 2x2x2 voxels of the grid, so its centre lies between them: that
    of the first one is half a voxel of the grid past the first that is read.
    """
    factor = input_rule.resolution // 2
    first = [start for start, _ in BRAIN_BOX] if input_rule.crop else [0, 0, 0]
    to_grid_voxel = np.diag([factor, factor, factor, 1.0])
    to_grid_voxel[:3, 3] = np.array(first) + (factor - 1) / 2
    return GRID_AFFINE @ to_grid_voxel


def to_grid(effect: np.ndarray, input_rule: InputRule) -> np.ndarray:
    """A map of the network's input, (D, H, W), on the MNI152 2 mm grid, (91, 109, 91) float32.

    Linear between voxels, 0 outside the input. Values are not divided among voxels: where the input
    has 4 mm, each is the effect of 64 mm3.
    """
    from scipy import ndimage

    to_input = np.linalg.inv(input_affine(input_rule)) @ GRID_AFFINE
    moved = ndimage.affine_transform(
        np.asarray(effect, np.float64), to_input[:3, :3], to_input[:3, 3],
        output_shape=GRID_SHAPE, order=1, mode="grid-constant",
    )  # fmt: skip
    return moved.astype(np.float32)


def map_of(folder: Path, scan) -> Path:
    """The file of one scan's map."""
    return folder / "maps" / f"{scan.subject_id}.nii.gz"


def save_map(path: Path, effect: np.ndarray, *, overwrite: bool = False) -> None:
    """Writes a map on the grid, (91, 109, 91), as NIfTI float32 in MNI152 space."""
    image = nibabel.Nifti1Image(np.asarray(effect, np.float32), GRID_AFFINE)
    image.set_sform(GRID_AFFINE, code="mni")
    image.set_qform(GRID_AFFINE, code="mni")
    with replacing(path, overwrite=overwrite) as temporary:
        image.to_filename(temporary)


@dataclass(frozen=True)
class MeanMaps:
    """Means over scans on the grid, (91, 109, 91) each: of maps, and of their absolute values."""

    effect: np.ndarray
    magnitude: np.ndarray


def average_maps(
    model,
    dataset,
    method: Callable,
    execution,
    *,
    keep: Callable[[int, np.ndarray], None] = lambda place, effect: None,
) -> MeanMaps:
    """The means over the maps of all scans.

    Args:
        model: a network or several as one; its layers are fused in place.
        dataset: the scans, on the grid; their input_rule says where an input lies on it.
        method: from `build_method`.
        execution: the device.
        keep: called with each scan's place and its map, (91, 109, 91).
    """
    from tqdm import tqdm

    from model.layers import fuse_for_inference

    model = execution.place(fuse_for_inference(model))
    effects, magnitudes = np.zeros(GRID_SHAPE), np.zeros(GRID_SHAPE)
    for place, scan in enumerate(tqdm(dataset.scans, "maps", disable=None, leave=False)):
        found = method(model, execution.images(dataset[[place]]), scan.sex)
        effect = to_grid(found.cpu().numpy(), dataset.input_rule)
        keep(place, effect)
        effects += effect
        magnitudes += np.abs(effect)
    return MeanMaps(effects / len(dataset), magnitudes / len(dataset))


def rank_correlation(maps: MeanMaps, others: MeanMaps) -> float | None:
    """Spearman's, of mean magnitudes in the template's brain; None where a map is constant."""
    from scipy import stats

    from utils.scans.template import load_template

    ours, theirs = (each.magnitude[load_template().mask] for each in (maps, others))
    if np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return None
    return float(stats.spearmanr(ours, theirs).statistic)


def write_results(report: dict, maps: MeanMaps, folder: Path, *, overwrite: bool) -> None:
    """Writes RESULTS and prints the regions of most effect and what random weights say."""
    from analysis.saliency.map_picture import draw_map
    from analysis.saliency.regions import coarse_regions, format_regions, region_table

    signed, unit, method = report["signed"], report["unit"], report["method"]
    rows = region_table(maps.effect, maps.magnitude, coarse_regions(), signed=signed)
    cells = [[f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    save_map(folder / "mean_map.nii.gz", maps.effect, overwrite=overwrite)
    write_tsv(folder / "regions.tsv", [list(rows[0]), *cells], overwrite=overwrite)
    title = f"{method}, mean of {report['scans']} scans, stage {report['stage']}"
    figure = draw_map(
        maps.effect, title=title, unit=unit, signed=signed, meaning=MEANING[method] * signed
    )
    with replacing(folder / "saliency.png", overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=130)
    write_json(folder / "saliency.json", report, overwrite=overwrite)
    print(f"{format_regions(rows, unit)}\n{report['seconds_per_scan']:.1f} s a scan")
    correlation = report["rank_correlation_with_random_weights"]
    if correlation is not None:
        print(f"rank correlation with the maps of random weights: {correlation:.2f}")
        if correlation > ALIKE:
            print(
                f"warning: above {ALIKE}: much of these maps is what scans and the architecture "
                "give by themselves, not what the network has learnt; do not read them closely"
            )
    print(f"results: {', '.join(str(folder / name) for name in (*RESULTS, 'maps'))}")


if __name__ == "__main__":
    run_entry(main)
