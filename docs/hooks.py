"""What MkDocs needs to know of a repository whose pages also link files outside of docs/.

Links stay as they are read in the repository. Here each is turned into a link between pages of the
site, and files that only the repository has, as tables of benchmarks, are copied into the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def place(path: str) -> str:
    """Where a file of the repository is in the site; both are POSIX paths."""
    return PAGES.get(path) or path.removeprefix("docs/")


def origin(place: str) -> str:
    """The file of the repository that stands at a place of the site."""
    for path, page in PAGES.items():
        if place == page:
            return path
    return f"docs/{place}" if (ROOT / "docs" / place).exists() else place


def _target(link: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def on_files(files, config):
    """Adds the pages that lie outside of docs/, and every file that a page links."""
    paths = [f"docs/{f.src_uri}" for f in files if f.src_uri.endswith(".md")] + [*PAGES]
    found = dict.fromkeys(PAGES)
    while paths:
        path = paths.pop()
        text = (ROOT / path).read_text(encoding="utf-8")
        for link in _LINK.findall(text):
            target = _target(link, path)
            inside = target.startswith(("docs/", ".."))
            if not inside and target not in found and (ROOT / target).is_file():
                found[target] = None
                paths += [target] if target.endswith(".md") else []
    for path in found:
        source = str(ROOT / path)
        files.append(File.generated(config, place(path), abs_src_path=source))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to files of the repository into links to their places in the site."""
    path = origin(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri) or "."

    def linked(match):
        return posixpath.relpath(place(_target(match[1], path)), folder)

    return _LINK.sub(linked, markdown)
