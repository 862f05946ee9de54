"""What a browser finds in the HTML of a page, and a picture to put into one."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page that is well-formed, needs nothing from elsewhere and has no handlers of events.

    Attributes:
        text: all that is shown.
        tags: every element.
        names, states: heading and class of each article.
        cells: texts of the cells of each row of a table.
        images: attributes of each picture.
        scripts: their texts.
        policy: Content-Security-Policy.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.policy, self.open, self.addresses, self.anchors = "", "", [], [], []
        self.tags, self.names, self.states, self.cells, self.images, self.scripts = (
            [], [], [], [[]], [], []
        )  # fmt: skip
        content = path.read_text(encoding="utf-8")
        self.feed(content)
        self.close()
        assert self.open == []
        assert content.startswith("<!DOCTYPE html>\n")
        assert "url(" not in content
        assert self.policy.startswith("default-src 'none'; img-src data:;")
        assert not {"link", "iframe", "object"} & {*self.tags}
        assert all(re.match(r"#|data:image/", address) for address in self.addresses)
        assert len(self.anchors) == len(set(self.anchors))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert not [name for name in attributes if name.startswith("on")]
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.addresses += [attributes[name] for name in ("href", "src") if name in attributes]
        self.anchors += [attributes["id"]] if "id" in attributes else []
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]
        if tag == "img":
            self.images.append(attributes)
        elif tag == "article":
            self.states.append(attributes["class"])
        elif tag == "script":
            self.scripts.append("")
        elif tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data
        if "article" in self.open and self.open[-1] in ("h2", "h3"):
            self.names.append(data)
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    def photos(self) -> list[Image.Image]:
        """The pictures that are not drawings, decoded."""
        found = []
        for element in self.images:
            kind, content = element["src"].split(";base64,")
            if kind == "data:image/svg+xml":
                continue
            assert kind in ("data:image/png", "data:image/jpeg")
            image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
            image.load()
            assert (str(image.width), str(image.height)) == (element["width"], element["height"])
            found.append(image)
        return found


def picture(path: Path, *, seed: int = 0, size=(120, 80)) -> Path:
    """Writes a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
