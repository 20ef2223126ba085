"""Dockerfile: what it copies and names is there. Building it needs a daemon, and is not tested."""

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from carvana_tf import commands, flags

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
PAGE = (ROOT / "docs/docker.md").read_text()


def instructions(word: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in LINES if line.startswith(f"{word} ")]


def is_ignored(name: str) -> bool:
    """As the last rule of .dockerignore that fits says."""
    ignored = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule.strip() and not rule.startswith("#"):
            pattern = rule.removeprefix("!").removeprefix("**/")
            if fnmatch.fnmatch(name, pattern):
                ignored = not rule.startswith("!")
    return ignored


def test_what_is_copied_exists_and_is_sent():
    copied = [s for words in instructions("COPY") if "--from" not in words[0] for s in words[:-1]]
    assert {"pyproject.toml", "requirements.txt", "carvana_tf/"} <= {*copied}
    for name in copied:
        assert (ROOT / name).is_dir() == name.endswith("/"), name
        assert not is_ignored(name.rstrip("/")), name
    for name in (".git", "input", "models", "tests", "weights"):
        assert is_ignored(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [project["project"]["readme"], *project["project"]["license-files"]]
    file = project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    needed += [file] if isinstance(file, str) else file
    assert {*needed} <= {*copied}, "pip builds the package with these"


def test_stages_and_the_last_one():
    stages = [words[-1] for words in instructions("FROM") if "AS" in words]
    sources = [words[0] for words in instructions("FROM")]
    image = re.fullmatch(r"python:3\.(\d+)-slim-bookworm", sources[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert image and f">=3.{image[1]}" == project["requires-python"]
    assert {*sources[1:]} <= {*stages}
    assert [w[0] for w in instructions("COPY") if "--from" in w[0]] == ["--from=build"]
    assert instructions("USER") == [["1000"]]
    last = LINES[max(i for i, line in enumerate(LINES) if line.startswith("FROM")) :]
    assert last[-2:] == ['ENTRYPOINT ["carvana-tf"]', 'CMD ["--help"]']
    assert "carvana-tf" in project["scripts"]


def test_the_lock_file_becomes_constraints():
    """The `sed` of the Dockerfile, done by Python: it gives a line for each package."""
    locked = (ROOT / "requirements.lock").read_text()
    found = re.findall(r"^([A-Za-z0-9._-]+==[^ ;]+).*", locked, re.MULTILINE)
    assert len(found) == len(re.findall(r"^[^#\s].*==", locked, re.MULTILINE)) > 30
    assert any(re.fullmatch(r"tensorflow==\d+\.\d+\.\d+", line) for line in found)
    (sed,) = [line for line in LINES if "sed " in line]
    assert r"'s/^([A-Za-z0-9._-]+==[^ ;]+).*/\1/p' requirements.lock" in sed


COMMANDS = re.findall(
    r"docker run .*? carvana_tf(?::cuda)? (\w+) ((?:--\S+\s*)*)", PAGE.replace("\\\n", " ")
)


@pytest.mark.parametrize(("name", "text"), COMMANDS)
def test_commands_of_the_page(name, text):
    known = {f for group in commands.find(name).groups for f in flags.defaults(group)}
    for flag in text.split():
        assert flag.removeprefix("--").partition("=")[0] in {*known, "flagfile"}


def test_names_on_the_page():
    assert len(COMMANDS) == 3
    arguments = {words[0].partition("=")[0] for words in instructions("ARG")}
    page = PAGE + "\n".join(line for line in LINES if line.startswith("#"))
    used = re.findall(r"--build-arg (\w+)=(\S+)", page)
    assert {name for name, _ in used} == arguments == {"VARIANT", "EXTRAS"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, value in used:
        if name == "EXTRAS":
            assert {*value.split(",")} <= {*extras["optional-dependencies"]}
        else:
            assert any(f"{value})" in line for line in LINES)
    for inside in re.findall(r"/opt/carvana_tf/([\w./-]+\.\w+)", PAGE):
        assert (ROOT / inside).is_file()
