"""python docs/_site.py FOLDER: the site's sources, docs/ with pages made of the files at the root.

README.md is the site's front page, CONTRIBUTING.md and CHANGELOG.md are pages, so that no text
stands in two places. Their links are written for the repository; here they become the site's. A
program before the site's builder and no plugin of it, so that another builder takes the same
folder.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PLOTS = "benchmarks/results"

# A picture that follows the reader's system -> two, of which the site shows that of its palette.
_PICTURE = re.compile(
    r'<picture>\s*<source[^>]*srcset="(?P<dark>[^"]+)">\s*<img alt="(?P<alt>[^"]+)"\s*'
    r'src="(?P<light>[^"]+)"[^>]*>\s*</picture>'
)


def of_root(text: str) -> str:
    """A page of the repository's root, for the root of the site."""
    text = _PICTURE.sub(
        r"![\g<alt>](\g<light>#only-light) ![\g<alt>](\g<dark>#only-dark)",
        text,
    )
    for path, page in PAGES.items():
        text = text.replace(f"]({path})", f"]({page})")
    return text.replace("](docs/", "](")


def of_docs(text: str) -> str:
    """A page of docs/, likewise."""
    for path, page in PAGES.items():
        text = text.replace(f"](../{path})", f"]({page})")
    return text.replace(f"](../{PLOTS}/", "](plots/")


def stage(folder: Path) -> None:
    """Makes `folder` anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path, page in PAGES.items():
        (folder / page).write_text(of_root((ROOT / path).read_text()))
    for page in folder.glob("*.md"):
        page.write_text(of_docs(page.read_text()))
    (folder / "plots").mkdir()
    for plot in (ROOT / PLOTS).glob("*.png"):
        shutil.copy(plot, folder / "plots")


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
