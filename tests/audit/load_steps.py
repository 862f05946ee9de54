"""The steps whose load tests/audit/load.py measures, each in a process of its own.

The request is one line of JSON on the input, the answer the last line of the output. Each step
imports for itself, so that its memory is not that of the others' libraries.
"""

import csv
import json
import resource
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def check(folder: Path) -> None:
    """The check of a dataset, as before training."""
    sys.argv = [
        "check_dataset.py",
        *("--folders", str(folder / "scans"), "--labels", str(folder / "labels.csv")),
        *("--output", str(folder / "check.tsv"), "--overwrite"),
    ]  # fmt: skip
    runpy.run_module("data_preprocessing.check_dataset", run_name="__main__")


def start_up(folder: Path) -> None:
    """What training does before its first step: sheet and headers read, scans decoded and kept."""
    from utils.people.labels import read_labels
    from utils.scans.cache import Cache
    from utils.scans.cohort import open_cohort
    from utils.scans.dataset import ScanDataset
    from utils.scans.volumes import InputRule

    input_rule = InputRule(any_grid=True)
    labels = read_labels(folder / "labels.csv")
    scans = open_cohort(
        folder / "scans", labels, input_rule, need_age=True, need_sex=True, smallest_side=32
    )
    ScanDataset(scans, input_rule, Cache("disk", folder / "cache"))


def predict(folder: Path) -> None:
    """test.py, with a network that has not been trained."""
    from model.scaledense import ScaleDense
    from utils.networks.checkpoint import Checkpoint, save_checkpoint
    from utils.scans.volumes import InputRule

    network = folder / "network.pt"
    save_checkpoint(
        Checkpoint(ScaleDense(mean_age=50), InputRule(any_grid=True), summary={}), network
    )
    sys.argv = [
        "test.py",
        *("--test_folder", str(folder / "scans"), "--labels", str(folder / "labels.csv")),
        *("--output_dir", str(folder), "--model_name", str(network), "--no-tta"),
        *("--batch_size", "32"),
    ]  # fmt: skip
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "test.py"), run_name="__main__")


def report(folder: Path) -> None:
    """Table and page of predict.py, with a picture of every scan."""
    import pandas as pd

    from analysis.brain_pad.calibration import complete_row
    from analysis.report.page import write_report
    from data_preprocessing.pipeline.mosaic import draw_mosaic
    from utils.results.tables import TABLE, write_table
    from utils.scans.template import load_template

    mask = load_template().mask
    draw_mosaic(mask.astype(np.float32), mask, folder / "picture.png", title="a scan")
    found = pd.read_csv(folder / TABLE, sep="\t")
    rows = [
        complete_row(
            {
                "participant_id": scan, "scan": scan, "sex": "FM"[index % 2],
                "age": 20.0 + index % 70, "predicted_age": age, "qc_flag": "ok",
                "status": "ok", "model": "none",
            },
            None,
        )
        for index, (scan, age) in enumerate(
            zip(found.iloc[:, 0], found["predicted_age"], strict=True)
        )
    ]  # fmt: skip
    write_table(folder / "table" / TABLE, rows, overwrite=True)
    pictures = {row["scan"]: folder / "picture.png" for row in rows}
    write_report(rows, folder / "report.html", title="Load", pictures=pictures)


def predict_twice(folder: Path) -> None:
    """predict.py with the first of the shipped cascades, killed half way and run again."""
    root, output = Path(__file__).resolve().parents[2], folder / "ages"
    command = [
        *(sys.executable, "predict.py", str(folder / "scans"), "--output_dir", str(output)),
        *("--labels", str(folder / "labels.csv"), "--calibration", ""),
        *("--model_name", str(min((root / "pretrained").glob("tsan_*.pt")))),
    ]  # fmt: skip
    count = len(list((folder / "scans").iterdir()))
    # Its workers live on for minutes, and would hold a pipe on which the measurement waits.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, cwd=root, **quiet)
    while len(list(output.glob("scans/*_brainage.json"))) < count // 2:
        if started.poll() is not None:
            raise RuntimeError(f"predict.py ended before it was killed: {started.returncode}")
        time.sleep(0.1)
    started.kill()
    started.wait()
    subprocess.run(command, cwd=root, check=True)
    with (output / "predictions.tsv").open() as file:
        done = [row["status"] for row in csv.DictReader(file, delimiter="\t")].count("ok")
    if done != count:
        raise RuntimeError(f"{done} of {count} scans have an age")
    (output / "report.html").rename(folder / "report.html")


STEPS = {
    "check": check, "start-up": start_up, "prediction": predict, "report": report,
    "predict.py": predict_twice,
}  # fmt: skip
ON_GRID = ("check", "predict.py")


def measured(step: str, folder: Path) -> dict[str, float]:
    """Runs a step here; its seconds, and the memory of the largest process in MiB."""
    start = time.perf_counter()
    STEPS[step](folder)
    seconds = time.perf_counter() - start
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(user).ru_maxrss for user in users)  # KiB on Linux
    figures = {"seconds": seconds, "MiB": peak / 1024}
    if (folder / "report.html").is_file():
        figures["page MB"] = (folder / "report.html").stat().st_size / 1e6
    return figures


if __name__ == "__main__":
    request = json.loads(sys.stdin.read())
    print(json.dumps({"figures": measured(request["step"], Path(request["folder"]))}))
