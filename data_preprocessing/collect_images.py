"""Gathers one image out of each fsl_anat folder into one flat folder, ready to be split.

    python -m data_preprocessing.collect_images --folders processed --output_dir scans

fsl_anat writes `*.anat` folders whose files have the same names for everybody. Here each scan is
named after the parts of its folder's path that differ, so no two share a name. Each gets a sidecar
that says how it was made, and collected.tsv says where each came from. Originals are only read.
"""

import argparse
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_preprocessing.pipeline.recipe import Recipe
from utils.cli import new_parser, raise_all, run_entry
from utils.files import IMAGE_SUFFIXES, image_stem, replacing, require_empty, write_tsv
from utils.scans.provenance import write_sidecar
from utils.scans.volumes import decode

ANAT_SUFFIX = ".anat"
BRAIN = "T1_to_MNI_nonlin_brain"
# File, registration and mask by --image; FSL's brain is what lies in the mask of MNI152.
IMAGES = {
    "linear": ("T1_to_MNI_lin", "affine", "none"),
    "nonlinear": ("T1_to_MNI_nonlin", "deformable", "none"),
    "nonlinear_brain": (BRAIN, "deformable", "template"),
}
# Names of folders that say what was scanned, not who.
NOT_A_PERSON = re.compile(r"(t1w?|anat|structural|struct|mprage|spgr|image|in)", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """One fsl_anat folder.

    Attributes:
        folder: its path, ending in .anat.
        below: which of --folders it was found in.
    """

    folder: Path
    below: Path


def find_anat_folders(folders: Sequence[Path]) -> list[Found]:
    """All .anat folders in `folders`, at any depth, each once; `folders` may be some themselves.

    Links to .anat folders are taken, links to other folders are not followed.

    Raises:
        ValueError: folders that are missing or have none.
    """
    found: dict[Path, Found] = {}
    problems = []
    for given in folders:
        below = Path(given).absolute()
        anat = list(_walk(below))
        for folder in anat:
            found.setdefault(folder.resolve(), Found(folder, below))
        if not below.is_dir():
            problems.append(f"{given}: no such folder")
        elif not anat:
            problems.append(f"{given}: no {ANAT_SUFFIX} folder in it (links are not followed)")
    raise_all(problems)
    return sorted(found.values(), key=lambda one: one.folder)


def _walk(below: Path) -> Iterator[Path]:
    if below.name.endswith(ANAT_SUFFIX) and below.is_dir():
        yield below
        return
    for place, names, _ in os.walk(below):
        yield from (Path(place, name) for name in names if name.endswith(ANAT_SUFFIX))
        names[:] = [name for name in names if not name.endswith(ANAT_SUFFIX)]


def name_scans(found: Sequence[Found]) -> dict[str, Found]:
    """A name for every folder, no two alike, from as little of their paths as tells people apart.

    Tried in this order, for all folders alike: the folder's own name (sub-01.anat); the folders on
    the way to it (sub-01/ses-1/T1.anat is sub-01_ses-1); the same after the name of the folder that
    was searched. Names such as T1 or anat are left out of these. Then the same with such names, and
    the whole path.

    Raises:
        ValueError: folders that share a name even then.
    """
    paths = [_path_parts(one) for one in found]
    short = [["" if NOT_A_PERSON.fullmatch(part) else part for part in path] for path in paths]
    ways = [
        [path[-1:] for path in short],
        [path[1:] for path in short],
        short,
        paths,
        [one.folder.with_suffix("").parts[1:] for one in found],
    ]
    for way in ways:
        names = ["_".join(filter(None, parts)) for parts in way]
        # A session alone does not say who was scanned.
        tell_people = not any(name == "" or name.startswith("ses-") for name in names)
        # File systems of macOS and Windows do not tell a.nii from A.nii.
        if tell_people and len({name.lower() for name in names}) == len(names):
            return dict(zip(names, found, strict=True))
    raise ValueError(
        f"the names of these folders do not tell them apart: {names}; collect them one by one"
    )


def _path_parts(one: Found) -> list[str]:
    """The searched folder's name, those of the folders below it, and the .anat folder's own."""
    # A given .anat folder gets the names of the two above it: a person's, perhaps a session's.
    below = one.folder.parent.parent if one.folder == one.below else one.below
    inner = one.folder.relative_to(below).parts[:-1]
    return [below.name, *inner, one.folder.name.removesuffix(ANAT_SUFFIX)]


def find_images(named: dict[str, Found], image: str) -> dict[str, Path]:
    """The chosen image of every folder, by scan name.

    Raises:
        ValueError: every image that is missing, unreadable, off the MNI152 2 mm grid or empty.
    """
    images, problems = {}, []
    stem = IMAGES[image][0]
    for name, one in named.items():
        path = _image_file(one.folder, stem)
        if path is None:
            problems.append(f"{one.folder}: no {stem}.nii.gz; {_remedy(one.folder, stem)}")
            continue
        try:
            decode(path)
        except ValueError as error:
            problems.append(str(error))
        images[name] = path
    raise_all(problems)
    return images


def _image_file(folder: Path, stem: str) -> Path | None:
    paths = (folder / f"{stem}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _remedy(folder: Path, stem: str) -> str:
    """How the user can make a missing image."""
    brain, warp = "T1_biascorr_brain", "T1_to_MNI_nonlin_coeff"
    if stem != BRAIN:
        return "fsl_anat failed, or was run without this registration: see its log.txt"
    if not (_image_file(folder, brain) and _image_file(folder, warp)):
        return f"nor can it be made without {brain} and {warp}: preprocess the scan again"
    remedy = (
        "make it with: applywarp --ref=$FSLDIR/data/standard/MNI152_T1_2mm "
        + f"--in={shlex.quote(str(folder / brain))} --warp={shlex.quote(str(folder / warp))} "
        + f"--out={shlex.quote(str(folder / BRAIN))}"
    )
    if _image_file(folder, "T1_fast_pve_0"):
        remedy += " (fsl_anat segmented it: intensities will differ from the published ones a bit)"
    return remedy


def collect(images: dict[str, Path], *, image: str, write: str, output_dir: Path) -> None:
    """Writes scans, as links or copies, the sidecar of each, and the table collected.tsv.

    Args:
        images: file by scan name.
        image: which of `IMAGES` they are.
        write: `links` or `copies`.
        output_dir: empty or new.
    """
    _, registration, mask = IMAGES[image]
    recipe = asdict(Recipe(backend="fsl", registration=registration)) | {"mask": mask}
    output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, path in images.items():
        scan = output_dir / f"{name}{path.name[len(image_stem(path.name)) :]}"
        if write == "links":
            scan.symlink_to(path.absolute())
        else:
            with replacing(scan) as temporary:
                shutil.copyfile(path, temporary)
        write_sidecar(scan, {"source": str(path.absolute()), "recipe": recipe})
        rows.append((scan.name, image, path.absolute()))
    # Written last: a folder with collected.tsv is complete.
    write_tsv(output_dir / "collected.tsv", [("scan", "image", "source"), *rows])


def build_parser() -> argparse.ArgumentParser:
    """The flags of this program."""
    parser = new_parser("Gather images out of fsl_anat folders into one flat folder.")
    searched = f"searched for {ANAT_SUFFIX} folders"
    parser.add_argument(
        "--folders", type=Path, nargs="+", required=True, metavar="DIR", help=searched
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="an empty or new folder")
    parser.add_argument(
        "--image",
        choices=IMAGES,
        default="nonlinear_brain",
        help="nonlinear_brain: the brain, as published and as networks here are trained on; linear "
        "and nonlinear: fsl_anat's WHOLE HEADS, for other uses",
    )
    of_links = "symbolic links to the originals, or copies of them"
    parser.add_argument("--write", choices=("links", "copies"), default="links", help=of_links)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Finds folders, names and checks their images, and gathers them."""
    args = build_parser().parse_args(argv)
    require_empty(args.output_dir)
    images = find_images(name_scans(find_anat_folders(args.folders)), args.image)
    collect(images, image=args.image, write=args.write, output_dir=args.output_dir)
    table = args.output_dir / "collected.tsv"
    print(f"{len(images)} scans in {args.output_dir}; {table} says where each came from")
    if args.image != "nonlinear_brain":
        print(
            f"note: {IMAGES[args.image][0]} is a whole head, not a brain: a network trained on "
            "brains must not be given it (the sidecars say mask: none)"
        )


if __name__ == "__main__":
    run_entry(main)
