"""A small reader of the reports' HTML, for their tests: balance, ids, text, tables."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree as Xml

HOSTILE = "</title><script>alert('x')</script><img src=x onerror=alert(1)>&\"'"
"""A name that must stay text."""

_VOID = {"meta", "br"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    parent: "Node | None" = None
    children: list["Node"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text inside, with single spaces."""
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list["Node"]:
        """Every element of this name below, in the order of the page."""
        return [node for node in self.walk() if node.tag == tag]

    def walk(self) -> list["Node"]:
        found = []
        for child in self.children:
            found += [child, *child.walk()]
        return found


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs}, self.open[-1])
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for node in self.open:
            node.texts.append(data)


def parse(html: str) -> Node:
    """Return the root of a page; unbalanced tags fail the test."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    assert builder.open == [builder.root], f"<{builder.open[-1].tag}> is never closed"
    return builder.root


def find(root: Node, **attributes: str) -> Node:
    """Return the only element with these attributes; `class_` stands for class."""
    wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    found = [node for node in root.walk() if wanted.items() <= node.attributes.items()]
    assert len(found) == 1, f"{len(found)} elements with {wanted}"
    return found[0]


def section(root: Node, heading: str) -> Node:
    """Return the section or aside with this heading."""
    found = [
        node.parent for node in root.all("h2") if node.text == heading and node.parent is not None
    ]
    assert len(found) == 1, f"{len(found)} sections headed {heading!r}"
    return found[0]


def body_rows(node: Node) -> list[list[str]]:
    """Return the texts of the cells of every row of data below."""
    return [
        [cell.text for cell in row.children]
        for row in node.all("tr")
        if any(cell.attributes.get("scope") == "row" for cell in row.children)
    ]


def check_page(html: str, *, num_plots: int = 4) -> Node:
    """Return the parsed page after everything that holds for every report."""
    assert html.startswith("<!DOCTYPE html>")
    root = parse(html)
    ids = [node.attributes["id"] for node in root.walk() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    plots = re.findall(r"<svg[^>]*role=\"img\".*?</svg>", html, flags=re.DOTALL)
    assert len(plots) == num_plots
    for plot in plots:
        svg = Xml.fromstring(plot)  # noqa: S314
        texts = [node for node in svg.iter() if node.tag.endswith("}text")]
        assert texts, "the text of a plot stays text"
        for reference in re.findall(r"(?:url\(|href=\")#([\w-]+)", plot):
            assert reference in ids
    return root


def check_asks_nothing_of_the_network(html: str) -> None:
    """Fail on anything that a browser would fetch."""
    rest = html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "//" not in re.sub(r"<pre.*?</pre>", "", rest, flags=re.DOTALL)
    assert not re.search(r"\bsrc=|<link|@import|url\((?!#)", rest)
