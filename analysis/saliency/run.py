"""What analysis.saliency does: maps of all scans, the same of random weights, table and picture."""

import time
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

from analysis.saliency.attribution import Occlusion, SmoothGrad, with_random_weights
from analysis.saliency.map_picture import draw_map
from analysis.saliency.maps import MeanMaps, average_maps, rank_correlation, save_map
from analysis.saliency.regions import coarse_regions, format_regions, region_table
from utils.files import replacing, require_absent, write_json, write_tsv
from utils.machine import use_machine_well
from utils.networks.checkpoint import Checkpoint, load_ensemble
from utils.networks.execution import choose_execution
from utils.networks.predictor import introduce
from utils.people.codebook import parse_sex_codes
from utils.people.labels import read_labels
from utils.scans.cohort import Scan, open_cohort
from utils.scans.dataset import open_for_one_pass
from utils.scans.volumes import InputRule, find_scans

MAX_RANDOM_CORRELATION = 0.5  # rank correlation with maps of random weights; above it, a warning
RESULTS = ("saliency.json", "regions.tsv", "saliency.png", "mean_map.nii.gz")
MEANING = {
    "smoothgrad": "above 0: adds to the age",
    "occlusion": "below 0: hiding it makes the brain look younger",
}


def map_scans(args: Namespace) -> dict:
    """Writes maps, table and picture; returns what saliency.json holds."""
    use_machine_well(args.threads)
    execution = choose_execution(args.device, "float32")
    checkpoint = load_ensemble(args.checkpoint)
    # A scan off the grid has no place on it.
    input_rule = replace(checkpoint.input_rule, any_grid=False)
    method = build_method(args, input_rule.resolution)
    folder = Path(args.output_dir)
    scans, comparison = open_scans(args, checkpoint, input_rule)
    files = [folder / "maps" / f"{scan.subject_id}.nii.gz" for scan in scans]
    if not args.overwrite:
        require_absent(*(folder / name for name in RESULTS), *files)
    dataset = open_for_one_pass(scans, input_rule)
    random = with_random_weights(checkpoint.model, seed=args.seed) if args.random_weights else None
    started = time.perf_counter()
    maps = average_maps(
        checkpoint.model, dataset, method, execution,
        keep=lambda place, effect: save_map(files[place], effect, overwrite=args.overwrite),
    )  # fmt: skip
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


def build_method(args: Namespace, resolution: int) -> SmoothGrad | Occlusion:
    """The method that the flags describe, for voxels of `resolution` mm.

    Raises:
        ValueError: a cube or stride that is no whole number of voxels, or leaves some out.
    """
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


def open_scans(
    args: Namespace, checkpoint: Checkpoint, input_rule: InputRule
) -> tuple[list[Scan], dict]:
    """The scans that the flags name, and a comparison of how they and the training scans were made.

    Prints what users should know about both.
    """
    labels = None
    if any(args.labels or ()):  # '': none
        found, codes = find_scans(args.scan_folder), parse_sex_codes(args.sex_codes)
        labels = read_labels(args.labels, found, sex_codes=codes, site=args.site)
    scans = open_cohort(args.scan_folder, labels, input_rule)[: args.limit]
    comparison = introduce(checkpoint, scans, role="scans")
    if checkpoint.input_rule.any_grid:
        print("note: trained with --any_grid; these scans may lie otherwise than those it knows")
    if checkpoint.stage == 2 and args.method == "smoothgrad":
        print("note: gradients of the second stage's residual; occlusion sees the whole cascade")
    return scans, comparison


def write_results(report: dict, maps: MeanMaps, folder: Path, *, overwrite: bool) -> None:
    """Writes RESULTS; prints the regions of most effect and the comparison with random weights."""
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
    print(f"{format_regions(rows, unit)}\n{report['seconds_per_scan']:.1f} s per scan")
    correlation = report["rank_correlation_with_random_weights"]
    if correlation is not None:
        print(f"rank correlation with the maps of random weights: {correlation:.2f}")
        if correlation > MAX_RANDOM_CORRELATION:
            print(
                f"warning: above {MAX_RANDOM_CORRELATION}: much of these maps comes from the scans "
                "and the architecture, not from what the network has learnt; do not read them "
                "closely"
            )
    print(f"results: {', '.join(str(folder / name) for name in (*RESULTS, 'maps'))}")
