"""What a training run leaves for people to watch: metrics.jsonl and TensorBoard events."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from utils.files import replacing


class RunLog:
    """Writes one line of metrics.jsonl and one point of every TensorBoard curve per epoch.

    Args:
        folder: the run's output folder.
        epochs_done: epochs that a resumed run has behind it; later lines are dropped.
    """

    def __init__(self, folder: Path, *, epochs_done: int = 0):
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.lines = [line for line in lines if json.loads(line)["epoch"] <= epochs_done]
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def write(self, epoch: int, values: dict[str, float], figure: Figure | None = None) -> None:
        """Logs an epoch, counted from 1; the names are whatever the loss and metrics call them."""
        self.lines.append(json.dumps({"epoch": epoch, **values}))
        with replacing(self.path, overwrite=True) as temporary:
            temporary.write_text("\n".join(self.lines) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        if figure is not None:
            self.writer.add_figure("validation/scatter", figure, epoch)
        self.writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self.writer.close()
