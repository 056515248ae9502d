"""The documentation keeps up with the code."""

import re
import subprocess
from pathlib import Path

import pytest

from archive import catalog
from handlers.errors import UserError
from scripts import readme

READMES = tuple(readme.READMES)
PAGES = [*READMES, *(f"docs/{path.name}" for path in sorted((catalog.ROOT / "docs").glob("*.md")))]


def read(page: str) -> str:
    return (catalog.ROOT / page).read_text(encoding="utf-8")


def make_targets() -> set[str]:
    makefile = read("Makefile")
    return set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


@pytest.mark.parametrize("name", READMES)
def test_the_table_of_models_is_the_list_of_models(name: str) -> None:
    table = re.search(r"^\|[^\n]*\n\|---.*?\n\n", read(name), re.MULTILINE | re.DOTALL)
    assert table is not None
    first_cells = [line.split("|")[1] for line in table[0].strip().splitlines()[2:]]
    named = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == catalog.model_names()


@pytest.mark.parametrize(("name", "language"), readme.READMES.items())
def test_the_table_of_models_is_what_the_cards_say(name: str, language: readme.Language) -> None:
    assert read(name) == readme.with_table(read(name), language), "run: make readme"


def test_readme_without_markers_is_refused() -> None:
    with pytest.raises(UserError, match="expected the markers <!-- models"):
        readme.with_table("# a page\n", "en")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page))
    folder = (catalog.ROOT / page).parent
    assert [link for link in links if "://" not in link and not (folder / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page: str) -> None:
    commands = re.findall(r"`make ([^`]+)`|^make (.+)$", read(page), re.MULTILINE)
    words = {
        word
        for command in commands
        for word in re.split(r"ARGS=|#|<", "".join(command))[0].split()
        if re.fullmatch(r"[a-z-]+", word)
    }
    assert words <= make_targets()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=catalog.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    named = re.findall(
        r"`((?:handlers|training|serving|archive|scripts|sidecar|bench)/[\w/]+\.\w+)", read(page)
    )
    assert [name for name in named if name not in tracked] == []


@pytest.mark.parametrize("page", ["docs/serving.md"])
def test_every_setting_of_make_serve_is_documented(page: str) -> None:
    exported = re.search(r"^export ((?:.*\\\n)*.*)$", read("Makefile"), re.MULTILINE)
    assert exported is not None
    settings = re.findall(r"[A-Z_]+", exported[1])
    assert [name for name in settings if f"`{name}`" not in read(page)] == []


def test_both_readmes_have_the_same_sections_and_commands() -> None:
    english, chinese = map(read, READMES)
    assert len(re.findall(r"^#+ ", english, re.MULTILINE)) == len(
        re.findall(r"^#+ ", chinese, re.MULTILINE)
    )
    commands = [re.findall(r"^make [a-z-]+", text, re.MULTILINE) for text in (english, chinese)]
    assert commands[0] == commands[1]


def test_every_target_has_a_line_in_make_help() -> None:
    rules = set(re.findall(r"^([a-z][a-z-]*):(?!=)", read("Makefile"), re.MULTILINE))
    assert rules == make_targets()


def test_no_path_of_a_machine_is_in_the_pages() -> None:
    for page in PAGES:
        assert str(Path.home()) + "/" not in read(page)


def test_make_help_fits_a_terminal_of_80_columns() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=catalog.ROOT, capture_output=True, text=True, check=True
    )
    assert [line for line in shown.stdout.splitlines() if len(line) > 80] == []
