"""Pages of the console read as a browser would, and checked for what each of them has to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_NAMED_BY_LABEL = {"input", "select", "textarea"}


@dataclass
class Element:
    """An element with its attributes, and what is in it."""

    tag: str
    attributes: dict[str, str]
    inside: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        return self.attributes.get(name, "")

    def all(self, tag: str = "") -> Iterator[Element]:
        """Every element below this one, of that tag if one is given."""
        for element in self.inside:
            if not tag or element.tag == tag:
                yield element
            yield from element.all(tag)

    def says(self) -> str:
        """Its name for somebody who does not see it."""
        return self["aria-label"] or self.text or " ".join(picture["alt"] for picture in self.all("img"))

    @property
    def text(self) -> str:
        """All text below it, spaces as one."""
        own = " ".join([*self.texts, *(element.text for element in self.inside)])
        return " ".join(own.split())


class Page(HTMLParser):
    """The whole page as a tree; `root` holds everything."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]
        self.unclosed: list[str] = []
        self.feed(source)
        self.close()
        self.unclosed += [element.tag for element in self._open[1:]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].inside.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].inside.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self._open[-1].tag == tag:
            self._open.pop()
        else:
            self.unclosed.append(tag)

    def handle_data(self, data: str) -> None:
        self._open[-1].texts.append(data)

    def all(self, tag: str = "") -> list[Element]:
        """Every element of that tag."""
        return list(self.root.all(tag))

    def by_id(self, id: str) -> Element:
        """The element of that id."""
        (found,) = [element for element in self.all() if element["id"] == id]
        return found

    @property
    def text(self) -> str:
        """What people read."""
        return self.root.text

    def token(self) -> str:
        """The token that its forms send."""
        return next(element["value"] for element in self.all("input") if element["name"] == "_token")

    def faults(self) -> list[str]:
        """What is not as every page has to be: structure, names of controls, nothing inline."""
        found = [f"<{tag}> is not closed where it was opened" for tag in self.unclosed]
        found += [f"has not one <{tag}>" for tag in ("h1", "main", "header", "head") if len(self.all(tag)) != 1]
        if len(list(self.all("head")[0].all("title"))) != 1:
            found.append("has not one title")
        ids = [element["id"] for element in self.all() if element["id"]]
        found += [f"two elements have the id {id}" for id in sorted({id for id in ids if ids.count(id) > 1})]
        labelled = {label["for"] for label in self.all("label")}
        for element in self.all():
            found += [f"<{element.tag} {name}>" for name in element.attributes if name == "style" or name[:2] == "on"]
            if element.tag == "script" and (element.text or not element["src"].startswith("/static/")):
                found.append("a script that is not ours")
            named = element["id"] in labelled or element["aria-label"] or element["aria-labelledby"]
            if element.tag in _NAMED_BY_LABEL and element["type"] not in ("hidden", "submit") and not named:
                found.append(f"<{element.tag} name={element['name']}> has no label")
            if element.tag in ("button", "a") and not element.says():
                found.append(f"<{element.tag}> says nothing")
            if element.tag == "img" and not element["alt"]:
                found.append("a picture without words")
            found += [f"{word} names nothing" for word in element["aria-describedby"].split() if word not in ids]
            found += [f"{word} names nothing" for word in element["aria-labelledby"].split() if word not in ids]
            if element.tag == "a" and element["href"].startswith("#") and element["href"][1:] not in ids:
                found.append(f"{element['href']} leads nowhere")
            sends = element.tag == "form" and element["method"] == "post" and element["action"] != "/login"
            if sends and not any(inner["name"] == "_token" for inner in element.all("input")):
                found.append(f"the form {element['action']} has no token")
        found += ["<html> has no language"] if not self.all("html")[0]["lang"] else []
        levels = [int(element.tag[1]) for element in self.all() if element.tag in ("h1", "h2", "h3", "h4")]
        if any(after > before + 1 for before, after in itertools.pairwise(levels)):
            found.append(f"the headings skip a level: {levels}")
        return found
