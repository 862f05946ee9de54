"""HTML pages in one file that needs no other file, made from Jinja2 templates.

Every page extends `page.html.jinja`. Its Content-Security-Policy allows the browser to show
pictures that are inside the file and to run the page's own script, which it recognises by its
SHA-256. The browser loads nothing from elsewhere.
"""

import base64
import hashlib
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.files import replacing

FULL_PICTURES = 200  # later pictures are halved, so that a page of thousands still opens
MARKS = {"failed": "✕", "flagged": "▲", "ok": "●", "done": "●"}  # colour alone says nothing
JPEG_QUALITY = 60  # of a halved picture


@dataclass(frozen=True)
class PagePicture:
    """A picture inside a page.

    Attributes:
        source: its content as a `data:` address.
        width: in CSS pixels.
        height: in CSS pixels.
        problem: why there is no picture; empty where there is one.
    """

    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def write_page(template: Path, path: str | Path, *, overwrite: bool = False, **content) -> None:
    """Writes a page; the same arguments make the same bytes.

    Text is escaped, file names that are not valid UTF-8 too. The page is written while it is
    rendered: a template that calls `load_picture(path)` has one picture in memory at a time.

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
    number = itertools.count()
    environment.filters["sha256"] = _sha256
    environment.globals |= {
        "marks": MARKS,
        "full_pictures": FULL_PICTURES,
        "load_picture": lambda path: embed(path, halved=next(number) >= FULL_PICTURES),
    }
    with (
        replacing(path, overwrite=overwrite) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.writelines(environment.get_template(template.name).generate(**content))


def embed(path: str | Path, *, halved: bool = False) -> PagePicture:
    """A PNG for a page; a file that is missing or broken becomes a `problem`.

    Args:
        path: of the PNG.
        halved: whether it becomes a JPEG of half the width and height, several times smaller.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()  # finds a file that is cut off
            if not halved:
                return PagePicture(data_address(Path(path).read_bytes(), "png"), *picture.size)
            small, buffer = picture.convert("RGB").reduce(2), io.BytesIO()
            small.save(buffer, format="JPEG", quality=JPEG_QUALITY)
            return PagePicture(data_address(buffer.getvalue(), "jpeg"), *small.size)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken files
        return PagePicture(problem=str(error))


def data_address(content: bytes, kind: str) -> str:
    """The `data:` address of a picture; `kind` is png, jpeg or svg+xml."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _sha256(text: str) -> str:
    """The digest as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
