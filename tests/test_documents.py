"""What README and docs say of files, headings and flags is there."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from conftest import SCRIPTS, SUITE, run_here

PAGES = [SUITE / "README.md", *sorted((SUITE / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def help_of(script: str) -> str:
    return run_here(script, "--help").out.replace("_", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for link in links:
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_scripts_and_flags_that_exist(page: Path) -> None:
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python ")]
    lines += re.findall(r"`((?:python |torchrun [^`]*?)?\w+\.py [^`…]*)`", page.read_text())
    for line in lines:
        words = shlex.split(line, comments=True)
        script = next((word for word in words if word.endswith(".py")), None)
        if script is None or not (SCRIPTS / script).exists():
            continue
        given = words[words.index(script) + 1 :]
        if script.startswith(".."):
            continue
        shown = help_of(script)
        for flag in (word.partition("=")[0] for word in given if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){flag.replace('_', '-')}(?![\w-])", shown), f"{script}: {flag}"


def test_every_script_is_in_the_readme_and_every_page_is_linked_from_it() -> None:
    readme = (SUITE / "README.md").read_text()
    pages = {f"docs/{page.name}" for page in PAGES[1:]}
    assert pages <= set(re.findall(r"\]\((docs/[\w.-]+)", readme))
    for script in (file.name for file in SCRIPTS.glob("*.py")):
        assert f"`{script}`" in readme, script


def test_quoted_messages_exist_in_the_code() -> None:
    """Each part of a message between its ellipses stands in a string of the code or of the Makefile."""
    files = [*SCRIPTS.glob("*.py"), *(SCRIPTS / "smmile").rglob("*.py"), SUITE / "Makefile"]
    code = "".join(file.read_text() for file in files)
    joined = re.sub(r'"\s+f?"', "", code)  # strings over several lines
    plain = re.sub(r"\{[^{}]*\}", "…", joined)
    page = (SUITE / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    foreign = ("ensurepip is not available", "No space left on device")
    messages = [message for row in rows for message in re.findall(r"`([^`]*)`", row) if " " in message]
    assert len(messages) > 20
    for message in messages:
        if message in foreign:
            continue
        for part in re.split(r"\s*…\s*|Python 3[.]\d+…?", message):
            assert part.strip(" ;:,") in plain, f"{message}: {part}"
