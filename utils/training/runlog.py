"""What a training run leaves for people to watch: metrics.jsonl and TensorBoard events."""

import json
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar
from tensorboardX.utils import figure_to_image

from utils.files import naming_what_is_full, replacing
from utils.results.plots import Figure


class RunLog:
    """Writes one line of metrics.jsonl and one point of every TensorBoard curve per epoch.

    Events are written here and not by SummaryWriter, whose thread loses those it still holds when
    the run is killed, and on a full disk ends and leaves the run waiting for it for ever.

    Args:
        folder: the run's output folder.
        epochs_done: epochs that a resumed run has behind it; later lines are dropped.
    """

    def __init__(self, folder: Path, *, epochs_done: int = 0):
        self.folder = folder / "tensorboard"
        self.path = folder / "metrics.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.lines = [line for line in lines if json.loads(line)["epoch"] <= epochs_done]
        self.folder.mkdir(exist_ok=True)
        # Without a suffix a run resumed within the same second would overwrite the file.
        self.events = EventsWriter(str(self.folder / "events"), f".{epochs_done}")
        # TensorBoard then hides what was logged of later epochs.
        started = SessionLog(status=SessionLog.START)
        self._write_event(epochs_done + 1, session_log=started)
        self._flush()

    def write(self, epoch: int, values: dict[str, float], figure: Figure | None = None) -> None:
        """Logs an epoch, counted from 1; the names are whatever the loss and metrics call them."""
        self.lines.append(json.dumps({"epoch": epoch, **values}))
        with replacing(self.path, overwrite=True) as temporary:
            temporary.write_text("\n".join(self.lines) + "\n")
        for name, value in values.items():
            self._write_event(epoch, summary=scalar(name, value))
        if figure is not None:
            drawn = image("validation/scatter", figure_to_image(figure))
            self._write_event(epoch, summary=drawn)
        self._flush()

    def close(self) -> None:
        """Closes the event file."""
        self.events.close()

    def _flush(self) -> None:
        with naming_what_is_full(self.folder):
            self.events.flush()

    def _write_event(self, epoch: int, **content) -> None:
        self.events.write_event(Event(wall_time=time.time(), step=epoch, **content))
