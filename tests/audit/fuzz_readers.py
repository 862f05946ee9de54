"""Fuzzes the readers of sheets and scans, guided by coverage, for --seconds per kind of file.

    pip install atheris
    python -m tests.audit.fuzz_readers .csv .xls .xlsx .nii .nii.gz --seconds 120 --output_dir finds

A reader returns a value or raises ValueError or OSError. Any other exception is a find: its input
is kept, one per place in the code. The exit code is 1 after a find, or where fuzzing broke off. A
find becomes a test (test_broken_sheets.py, test_broken_volumes.py).
"""

import argparse
import gzip
import logging
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

SHEETS = (".csv", ".tsv", ".txt", ".xls", ".xlsx")
SCANS = (".nii", ".nii.gz")
READERS = ["utils", "nibabel", "xlrd", "openpyxl", "pandas"]
LONGEST = 20_000  # bytes of an input
SECONDS_OF_ONE = 20  # libFuzzer reports an input that takes longer


def seeds(suffix: str) -> list[bytes]:
    """Good files of this kind, to be changed."""
    import nibabel
    import numpy as np
    import openpyxl

    from utils.files import write_xls

    rows = [["scan", "age", "sex"], ["a.nii.gz", 34.5, "F"], ["sub-2", "89+", 1], ["c", "=1+1", 0]]
    text = 'sep=;\n"scan";"age"\n"1";"a ""b""";50,5\n"2";"left\n\\"early;60\n'  # and of R
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        if suffix == ".txt":
            return [text.encode(), text.encode("utf-16")]
        if suffix in (".csv", ".tsv"):
            mark = "," if suffix == ".csv" else "\t"
            return [
                "\n".join(mark.join(map(str, row)) for row in rows[skip:]).encode()
                for skip in (0, 1)
            ]
        if suffix == ".xls":
            write_xls(path, rows)
        elif suffix == ".xlsx":
            book = openpyxl.Workbook()
            for row in rows:
                book.active.append(row)
            book.save(path)
        else:
            voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
            image = nibabel.Nifti1Image(voxels, np.diag([-2, 2, 2, 1]))
            content = image.to_bytes()
            return [gzip.compress(content)] if suffix == ".nii.gz" else [content]
        return [path.read_bytes()]


def reader_of(suffix: str):
    """What reads a file of this kind."""
    if suffix in SHEETS:
        from utils.people.labels import read_labels

        return read_labels
    from utils.scans.volumes import decode

    return lambda path: decode(path, any_grid=True)


def fuzz(suffix: str, seconds: int, output_dir: Path) -> None:
    """Fuzzes one reader and ends the process; run in a process of its own."""
    import atheris

    with atheris.instrument_imports(include=READERS):
        read = reader_of(suffix)
    warnings.simplefilter("ignore")
    logging.disable()  # what nibabel mends in headers
    corpus = output_dir / f"corpus{suffix}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds(suffix)):
        (corpus / f"seed{number}").write_bytes(content)
    path = Path(tempfile.mkdtemp()) / f"input{suffix}"
    found = set()

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except (ValueError, OSError):
            pass
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__}-{Path(frame.filename).stem}-{frame.lineno}"
            if place not in found:
                found.add(place)
                (output_dir / f"{place}{suffix}").write_bytes(content)
                print(f"find: {place}: {error}", flush=True)

    flags = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SECONDS_OF_ONE}"]
    flags += [f"-artifact_prefix={output_dir}/", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzzes each kind in turn; returns 1 where there are finds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=SHEETS + SCANS)
    parser.add_argument("--seconds", type=int, default=120, help="of each kind")
    parser.add_argument("--output_dir", type=Path, required=True, help="for finds and corpora")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    broken_off = []
    for kind in args.kinds:
        print(f"{kind}: {args.seconds} s", flush=True)
        process = os.fork()
        if process == 0:
            fuzz(kind, args.seconds, args.output_dir)
            os._exit(0)
        if os.waitpid(process, 0)[1]:
            broken_off.append(kind)
    finds = [path for path in args.output_dir.iterdir() if path.is_file()]
    print(f"{len(finds)} finds in {args.output_dir}")
    if broken_off:
        print(f"broken off, so not fuzzed to the end: {' '.join(broken_off)}")
    return int(bool(finds or broken_off))


if __name__ == "__main__":
    sys.exit(main())
