"""HTML pages in one file that needs no other file, made from Jinja2 templates.

Every page extends `page.html.jinja`. Its Content-Security-Policy allows the browser to show
pictures that are inside the file and to run the page's own script, which it recognises by its
SHA-256. The browser loads nothing from elsewhere.
"""

import base64
import hashlib
import io
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.files import replacing

# A page of 10,000 pictures opens in seconds: later ones are smaller, and wait as text at its end
# until they are scrolled to. A browser decodes every picture that is one, seen or not; and text
# amid the page takes it twice as long as text at the end.
FULL_PICTURES = 200
HALVED_PICTURES = 1000  # up to here; from here on a third of the width and height
MARKS = {"failed": "✕", "flagged": "▲", "ok": "●", "done": "●"}  # colour alone says nothing
BLOCK = 100  # waiting pictures in one element
WEBP = {"quality": 50, "method": 2}  # of a smaller picture


@dataclass(frozen=True)
class PagePicture:
    """A picture inside a page.

    Attributes:
        source: its content as a `data:` address.
        width: in CSS pixels.
        height: in CSS pixels.
        waits: whether it is shown when it is scrolled to, see page.js.
        problem: why there is no picture; empty where there is one.
    """

    source: str = ""
    width: int = 0
    height: int = 0
    waits: bool = False
    problem: str = ""


def write_page(template: Path, path: str | Path, *, overwrite: bool = False, **content) -> None:
    """Writes a page; the same arguments make the same bytes.

    Text is escaped, file names that are not valid UTF-8 too. The page is written while it is
    rendered: a template that calls `load_picture(path)` has few pictures in memory at a time.

    Args:
        template: a file that extends `page.html.jinja`; it can include files of its own folder.
        path: of the page.
        overwrite: whether `path` may exist already.
        **content: what the template shows; `title` is always needed.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        jinja2.UndefinedError: the template uses a name that `content` lacks.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _sha256
    environment.globals |= {"marks": MARKS, "full_pictures": FULL_PICTURES}
    with (
        replacing(path, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
        tempfile.TemporaryFile("w+", encoding="ascii") as waiting,
    ):
        pictures = _Pictures(waiting)
        environment.globals |= {
            "load_picture": pictures.load,
            "waiting_pictures": pictures.waiting,
        }
        file.writelines(environment.get_template(template.name).generate(**content))


class _Pictures:
    """The pictures of a page in the order of the page; what waits lies in `file` meanwhile."""

    def __init__(self, file: TextIO):
        self._count, self._file = itertools.count(), file

    def load(self, path: str | Path) -> PagePicture:
        """The next picture; see `embed`. One that waits comes without its content."""
        found = embed(path, number=next(self._count))
        if not found.waits:
            return found
        self._file.write(f"{found.source}\n")
        return replace(found, source="")

    def waiting(self) -> Iterator[list[str]]:
        """The contents of all pictures that wait, up to BLOCK at a time."""
        self._file.seek(0)
        while block := [line.strip() for line in itertools.islice(self._file, BLOCK)]:
            yield block


def embed(path: str | Path, *, number: int = 0) -> PagePicture:
    """A PNG for a page; a file that is missing or broken becomes a `problem`.

    Args:
        path: of the PNG.
        number: of the picture on its page, from 0: later ones become small WebP pictures.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()  # finds a file that is cut off
            if number < FULL_PICTURES:
                return PagePicture(data_address(Path(path).read_bytes(), "png"), *picture.size)
            small = picture.convert("RGB").reduce(2 if number < HALVED_PICTURES else 3)
            buffer = io.BytesIO()
            small.save(buffer, format="WEBP", **WEBP)
            return PagePicture(data_address(buffer.getvalue(), "webp"), *small.size, waits=True)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files
        return PagePicture(problem=str(error))


def data_address(content: bytes, kind: str) -> str:
    """The `data:` address of a picture; `kind` is png, webp or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _sha256(text: str) -> str:
    """The digest as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
