"""What a browser finds in the HTML of a page, and a picture to put into one."""

import base64
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID = {"meta", "img"}


@dataclass
class Element:
    """An element and all text inside it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


class Page(HTMLParser):
    """A page that is well-formed, needs nothing from elsewhere and has no handlers of events."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements, self.open = [], []
        content = path.read_text(encoding="utf-8")
        self.feed(content)
        self.close()
        assert self.open == []
        assert content.startswith("<!DOCTYPE html>\n")
        assert "url(" not in content
        assert not self.find("link", "iframe", "object")
        attributes = [pair for e in self.elements for pair in e.attributes.items()]
        assert not [name for name, _ in attributes if name.startswith("on")]
        self.addresses = [text for name, text in attributes if name in ("href", "src")]
        assert all(re.match(r"#|data:image/", address) for address in self.addresses)
        self.anchors = [text for name, text in attributes if name == "id"]
        assert len(self.anchors) == len(set(self.anchors))
        self.policy = self.find("meta")[1].attributes["content"]
        assert self.policy.startswith("default-src 'none'; img-src data:; style-src")
        assert self.policy.endswith("base-uri 'none'; form-action 'none'")
        self.text = self.find("body")[0].text
        # page.js makes pictures of the blocks of text at the end.
        waiting = [e for e in self.find("img") if e.attributes.get("class") == "waits"]
        blocks = [e for e in self.find("script") if e.attributes.get("class") == "pictures"]
        assert all(len(e.text.split()) == int(e.attributes["data-count"]) for e in blocks)
        sources = [source for e in blocks for source in e.text.split()]
        for image, source in zip(waiting, sources, strict=True):
            image.attributes["src"] = source
        self.images = [image.attributes for image in self.find("img")]
        found = self.find("script")
        self.scripts = [script.text for script in found if not script.attributes]
        self.later_rows = [
            script.text for script in found if script.attributes and "<tr>" in script.text
        ]
        self.names = [article.text.split("\n")[1] for article in self.find("article")]
        self.states = [article.attributes["class"] for article in self.find("article")]
        self.rows = []  # the texts of the cells of each row of a table
        for element in self.find("tr", "td", "th"):
            if element.tag == "tr":
                self.rows.append([])
            else:
                self.rows[-1].append(element.text)

    def find(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]

    def handle_starttag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs)))
        self.open += [] if tag in VOID else self.elements[-1:]

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        inside = self.open if self.open and self.open[-1].tag != "script" else self.open[-1:]
        for element in inside:
            element.text += data

    def photos(self) -> list[Image.Image]:
        """The pictures that are not drawings, decoded."""
        found = []
        for element in self.images:
            kind, content = element["src"].split(";base64,")
            if kind == "data:image/svg+xml":
                continue
            assert kind in ("data:image/png", "data:image/webp")
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
