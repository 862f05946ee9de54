r"""Makes a trained network small and self-describing, or writes it in the authors' format.

    python -m utils.networks.share ship runs/second/ScaleDense_best_model.pth.tar mine.pt \
        --cohort "Whose scans" --licence "CC BY 4.0" --metrics runs/second_stage/metrics.json \
        --scans data/train
    python -m utils.networks.share export runs/first/ScaleDense_best_model.pth.tar first.pth.tar

`ship` leaves out the state to resume from and the paths of the training, makes weights float16 and
adds a model card: `torch.load(FILE, weights_only=True)["summary"]["card"]`. The hashes of the
training scans stay, so that test.py can tell when it is given one of them. With the training scans
themselves it learns what these look like to the network, so that others can be told from them.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from utils.cli import Switch, new_parser, run_entry
from utils.files import hash_file, replacing, require_absent

CHECKSUMS = "SHA256SUMS"
KEPT = (
    "epoch", "training", "scans", "mean_training_age", "training_ages", "training_sexes",
    "training_hashes", "likeness",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Prepare a trained network to be given to others.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=new_parser)
    texts = {
        "ship": "make the file small and put a model card into it",
        "export": "write a network of the released width in the authors' format",
    }
    ship, export = (
        commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for name, text in texts.items()
    )
    ship.add_argument("checkpoint", type=Path, help="of either stage, ours")
    ship.add_argument("output", type=Path, help="new file; its folder gets SHA256SUMS")
    ship.add_argument("--cohort", required=True, metavar="TEXT", help="whose scans trained it")
    ship.add_argument("--licence", required=True, metavar="TEXT", help="and acknowledgement")
    ship.add_argument(
        "--metrics", nargs="*", default=[], type=Path, metavar="JSON", help="metrics.json files"
    )
    ship.add_argument(
        "--scans", nargs="+", default=[], metavar="DIR",
        help="where the training scans are: ages of scans unlike them can then be flagged",
    )  # fmt: skip
    ship.add_argument("--commit", default="unknown", metavar="HASH", help="of the training code")
    export.add_argument("checkpoint", type=Path, help="of either stage, trained here")
    export.add_argument("output", type=Path, help="file to write")
    export.add_argument("--overwrite", action=Switch, default=False, help="replace that file")
    return parser


def main(argv: Sequence[str] | None = None) -> Path:
    """Writes the file and returns its path; of a cascade, `export` writes the second stage."""
    args = build_parser().parse_args(argv)
    # After parsing, so that --help does not wait for torch.
    from utils.networks import checkpoint as files
    from utils.networks import likeness

    if args.command == "ship":
        require_absent(args.output)
    checkpoint = files.load_checkpoint(args.checkpoint)
    if args.command == "export":
        files.export_to_authors(checkpoint, args.output, overwrite=args.overwrite)
        print(f"stage {checkpoint.stage} written to {args.output} in the authors' format")
        return args.output
    summary = {name: checkpoint.summary[name] for name in KEPT if name in checkpoint.summary}
    summary["card"] = model_card(args, preprocessing=str(checkpoint.provenance))
    if args.scans:
        summary["likeness"] = [likeness.learn_from_folders(checkpoint, args.scans)]
    small = replace(checkpoint, model=checkpoint.model.half(), summary=summary, resume=None)
    files.save_checkpoint(small, args.output)
    checksum = write_checksum(args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, {checksum}")
    return args.output


def model_card(args: argparse.Namespace, *, preprocessing: str) -> dict:
    """What users of the network should know, with the overall figures of each metrics.json."""
    metrics = {}
    for path in args.metrics:
        report = json.loads(path.read_text())
        metrics[path.stem] = {
            predictor: groups["overall"]
            for predictor, groups in report.items()
            if isinstance(groups, dict) and "overall" in groups
        }
    return {
        "cohort": args.cohort,
        "licence": args.licence,
        "intended_use": "research; not for diagnosis",
        "preprocessing": preprocessing,
        "metrics": metrics,
        "commit": args.commit,
        "torch": version("torch"),
    }


def write_checksum(path: Path) -> str:
    """Puts the SHA-256 of a file into SHA256SUMS beside it, sorted by name, and returns it."""
    sums, checksum = path.parent / CHECKSUMS, hash_file(path)
    lines = sums.read_text().splitlines() if sums.exists() else []
    known = {line.split()[-1]: line for line in lines} | {path.name: f"{checksum}  {path.name}"}
    with replacing(sums, overwrite=True) as temporary:
        temporary.write_text("".join(f"{known[name]}\n" for name in sorted(known)))
    return checksum


if __name__ == "__main__":
    run_entry(main)
