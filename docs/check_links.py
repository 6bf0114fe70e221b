"""Checks the built site: every link and anchor within it leads somewhere, every picture has a text.

    python docs/check_links.py docs/_build/html

Links to other sites are not asked.
"""

import pathlib
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors, links and pictures of a page."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.pictures_without_text: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser for every tag that opens."""
        found = dict(attrs)
        self.anchors.add(found.get("id") or "")
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        if tag == "img" and not found.get("alt"):
            self.pictures_without_text.append(found.get("src") or "")


def faults(site: pathlib.Path) -> tuple[list[str], int]:
    """What is wrong, a line each, and how many links were followed."""
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): Page(path) for path in paths}
    wrong, followed = [], 0
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        wrong += [f"{name}: picture without text: {src}" for src in page.pictures_without_text]
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            followed += 1
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchors = pages[target].anchors if target in pages else {unquote(url.fragment)}
            if not target.exists():
                wrong.append(f"{name}: nothing at {link}")
            elif url.fragment and unquote(url.fragment) not in anchors:
                wrong.append(f"{name}: no such anchor: {link}")
    return wrong, followed


if __name__ == "__main__":
    found, followed = faults(pathlib.Path(sys.argv[1]))
    print(*found, f"{followed} links, {len(found)} faults", sep="\n")
    sys.exit(bool(found) or not followed)
