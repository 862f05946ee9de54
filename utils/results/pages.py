"""Pictures inside an HTML page that needs nothing beside it."""

import base64
import html
import io
from pathlib import Path

SMALL_QUALITY = 60  # of JPEG


def picture_element(path: str | Path, *, alt: str, halved: bool = False) -> str:
    """The `img` element with the bytes of a PNG in it.

    Args:
        path: of the PNG.
        alt: what it shows, for those who do not see it; escaped here.
        halved: whether it becomes a JPEG of half the width and height, several times smaller.

    Raises:
        OSError: no such file, no PNG, or one that is cut off; with Pillow some broken files are a
            SyntaxError.
    """
    from PIL import Image

    content, kind = Path(path).read_bytes(), "png"
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        picture.load()  # a file that is cut off is found here, not by the reader
        if halved:
            picture = picture.convert("RGB").reduce(2)
            small = io.BytesIO()
            picture.save(small, format="JPEG", quality=SMALL_QUALITY)
            content, kind = small.getvalue(), "jpeg"
        width, height = picture.size
    return (
        f'<img loading="lazy" width="{width}" height="{height}" alt="{html.escape(alt)}" '
        f'src="data:image/{kind};base64,{base64.b64encode(content).decode()}">\n'
    )
