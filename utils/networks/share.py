r"""Makes a trained network small and self-describing, to be given to others.

    python -m utils.networks.share runs/second/ScaleDense_best_model.pth.tar mine.pt \
        --cohort "Whose scans" --licence "CC BY 4.0" --metrics runs/second_stage/metrics.json

The state to resume from and the paths of the training are left out, weights become float16, and a
model card goes into the file: `torch.load(FILE, weights_only=True)["summary"]["card"]`. The hashes
of the training scans stay, so that test.py can say that it is given one of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.cli import new_parser, run_entry

CHECKSUMS = "SHA256SUMS"
KEPT = (
    "epoch", "training", "scans", "mean_training_age", "training_ages", "training_sexes",
    "training_hashes",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Make a trained network small and self-describing.")
    parser.add_argument("checkpoint", type=Path, help="of either stage, ours")
    parser.add_argument("output", type=Path, help="new file; its folder gets SHA256SUMS")
    parser.add_argument("--cohort", required=True, metavar="TEXT", help="whose scans trained it")
    parser.add_argument("--licence", required=True, metavar="TEXT", help="and acknowledgement")
    parser.add_argument(
        "--metrics", nargs="*", default=[], type=Path, metavar="JSON", help="metrics.json files"
    )
    parser.add_argument("--commit", default="unknown", metavar="HASH", help="of the training code")
    return parser


def main(argv: Sequence[str] | None = None) -> Path:
    """Writes the file and its checksum."""
    args = build_parser().parse_args(argv)
    import json

    import torch

    from utils.files import replacing, require_absent, sha256_of
    from utils.networks.checkpoint import load_checkpoint, save_checkpoint

    require_absent(args.output)
    checkpoint = load_checkpoint(args.checkpoint)
    summary = {name: checkpoint.summary[name] for name in KEPT if name in checkpoint.summary}
    figures = {path.stem: figures_of(json.loads(path.read_text())) for path in args.metrics}
    summary["card"] = {
        "cohort": args.cohort,
        "licence": args.licence,
        "intended_use": "research; not for diagnosis",
        "preprocessing": str(checkpoint.provenance),
        "metrics": figures,
        "commit": args.commit,
        "torch": str(torch.__version__),
    }
    save_checkpoint(
        args.output,
        checkpoint.model.half(),
        input_rule=checkpoint.input_rule,
        provenance=checkpoint.provenance,
        summary=summary,
    )
    sums = args.output.parent / CHECKSUMS
    lines = sums.read_text().splitlines() if sums.exists() else []
    lines = [line for line in lines if line.split()[-1] != args.output.name]
    lines.append(f"{sha256_of(args.output)}  {args.output.name}")
    with replacing(sums, overwrite=True) as temporary:
        temporary.write_text("\n".join(sorted(lines, key=lambda line: line.split()[-1])) + "\n")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, {lines[-1].split()[0]}")
    return args.output


def figures_of(report: dict) -> dict:
    """The overall figures of a metrics.json, by predictor."""
    return {
        predictor: {name: value for name, value in groups["overall"].items() if name != "n"}
        | {"n": groups["overall"]["n"]}
        for predictor, groups in report.items()
        if isinstance(groups, dict) and "overall" in groups
    }


if __name__ == "__main__":
    run_entry(main)
