"""The documents name files, tests, pages and headings that exist, in lines that fit the screen."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")],
    key=str,
)
WRITTEN_BY_COMMANDS = {"benchmarks", "chaos", "soak", "errors.md", "settings.md"}
MOST_COLUMNS = 120
FOLDERS = "perdure|workflows|activities|workers|starter|tests|docs|deploy|examples|proofs"


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def alternatives(pattern: str) -> Iterator[str]:
    """Expand the first `{a,b}` of a path, as a shell does."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern)
    if found is None:
        yield pattern
        return
    for choice in found[2].split(","):
        yield found[1] + choice + found[3]


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {slug(heading) for heading in headings}


def prose_lines(page: Path) -> list[str]:
    """Return the page's lines without blocks of code."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    return [line for line in lines if not line.startswith("    ")]


def test_links_lead_to_pages_and_headings(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    for target, anchor in links:
        if target.startswith(("http:", "https:")):
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), f"no {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"no heading {target}#{anchor}"


def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w/.{{}},_*-]*)", page.read_text())
    missing = [path for name in named for path in alternatives(name) if not list(ROOT.glob(path))]
    assert not missing


def test_tests_that_are_named_exist(page: Path) -> None:
    prose = "\n".join(prose_lines(page))
    sources = list((ROOT / "tests").rglob("*.py"))
    known = "\n".join([*(f"def {path.name}" for path in sources), *(path.read_text() for path in sources)])
    named = re.findall(r"\btest_\w+(?:\.py)?", prose)
    assert not [name for name in named if f"def {name}" not in known]


def test_lines_fit_the_screen(page: Path) -> None:
    by_command = WRITTEN_BY_COMMANDS & {page.name, page.parent.name}  # their tables are as wide as they are
    long_lines = [line for line in prose_lines(page) if len(line) > MOST_COLUMNS and line[0] != "|"]
    assert by_command or not long_lines
