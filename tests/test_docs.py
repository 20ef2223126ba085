"""The pages: their links, flags and commands, and the way from annotations to cut-outs."""

import dataclasses
import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from conftest import draw_pair

from carvana_tf import cli, commands, flags
from carvana_tf.data.images import write_photo
from carvana_tf.errors import Problems

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "weights/README.md")
)
SCRIPTS = {script: name for name, script in commands.SCRIPTS.items()}
OF_EVERY_COMMAND = {"flagfile", "help", "helpfull", "verbosity", "version", "reference"}
OF_OTHER_PROGRAMS = {
    *("build-arg", "rm", "user", "gpus", "shm-size"),  # Docker
    *("output", "count"),  # LabelMe; harnesses of tests/faults
    *("array", "time"),  # SLURM
}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
_OTHER_PROGRAM = re.compile(
    r"`(?:docker|pip|mkdocs|ray|sbatch|python (?:tests|benchmarks)/)[^`]*`|^#SBATCH .*",
    re.MULTILINE,
)
_FLAG = re.compile(r"(?<![\w/-])--(?:\[no\])?([A-Za-z]\w*(?:-\w+)*)")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs both make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip()
        found.add(re.sub(r"[\s]+", "-", slug))
    return found


def command_lines(text: str) -> list[list[str]]:
    """What the boxes of a page would have a shell run, split into words."""
    lines = []
    for indent, language, box in _FENCE.findall(text):
        if language in ("", "bash", "sh", "console"):
            box = re.sub(r"\\\n\s*", " ", re.sub(f"^{indent}", "", box, flags=re.MULTILINE))
            lines += [shlex.split(line, comments=True) for line in box.splitlines()]
    return lines


def parsed(words: list[str]) -> bool:
    """Parses the command in a line, as the command would; whether there was one."""
    if "docker" in words[:1] and "run" in words:
        image = next(i for i, word in enumerate(words) if re.match(r"carvana_tf(:|$)", word))
        words = ["carvana-tf", *words[image + 1 :]]
        words = [word.replace("/opt/carvana_tf/", "") for word in words]
    if words[:1] == ["carvana-tf"]:
        name, arguments = words[1], words[2:]
    elif words[:1] == ["python"] and words[1] in SCRIPTS:
        name, arguments = SCRIPTS[words[1]], words[2:]
    else:
        return False
    if name.startswith("-") or "..." in arguments or any(map(cli.asks_for_help, arguments)):
        return True
    command = commands.find(name).chosen(arguments)
    problems = Problems()
    command.check_flags(command.parse(arguments), problems)
    problems.raise_any()
    return True


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """A folder without any dataset, in which recipes and a plan are found as in a checkout."""
    for name in ("recipes", "folds.csv"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "plan.flags").write_text("--network=mobilenet\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_links_and_their_anchors_resolve(page):
    wrong = []
    for target, anchor in _LINK.findall(_FENCE.sub("", text_of(page))):
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists():
            wrong.append(target)
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            wrong.append(f"{target}#{anchor}")
    assert wrong == []


@functools.cache
def every_flag() -> frozenset[str]:
    found = set()
    for name in commands.SCRIPTS:
        command = commands.find(name)
        for task in ("", *command.variants):
            for group in command.chosen([f"--task={task}"]).groups:
                for leaf in flags.leaves(group):
                    for field in dataclasses.fields(leaf):
                        found |= {field.name, field.metadata["alias"] or field.name}
    return frozenset(found)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_flag_that_a_page_names_exists(page):
    known = every_flag() | OF_EVERY_COMMAND | OF_OTHER_PROGRAMS
    named = set(_FLAG.findall(_OTHER_PROGRAM.sub("", text_of(page))))
    assert {flag for flag in named if flag.removeprefix("no") not in known} - known == set()


def test_every_flag_is_documented():
    page = set(_FLAG.findall(text_of("docs/commands.md")))
    assert every_flag() - page == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_parses(page, apart):
    for words in command_lines(text_of(page)):
        parsed(words)


def test_commands_are_recognised(apart):
    assert parsed(["carvana-tf", "train", "--fold=0"])
    assert not parsed(["make", "demo"])
    with pytest.raises(Exception, match="fould"):
        parsed(shlex.split("docker run --rm -v $PWD:/work carvana_tf:cuda train --fould=0"))
    assert command_lines("```\ncarvana-tf train \\\n    --fold=0  # one\n```\n") == [
        ["carvana-tf", "train", "--fold=0"]
    ]


def notebook_lines() -> list[list[str]]:
    notebook = json.loads(text_of("docs/ten_minutes.ipynb"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    return [shlex.split(line[1:]) for line in lines if line.startswith("!")]


def test_the_commands_of_the_notebook_parse(apart):
    assert [parsed(words) for words in notebook_lines()] == [True] * 8


def test_every_recipe_has_a_row():
    page = text_of("docs/recipes.md")
    files = [p.name for p in (ROOT / "recipes").iterdir() if p.suffix in (".flags", ".yaml")]
    assert [name for name in files if f"`{name}`" not in page] == []


def labelme(photo: Path, mask) -> None:
    """What LabelMe saves for one outline."""
    (outline, *_), _ = cv2.findContours(
        mask.astype("uint8"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    shape = {"label": "car", "shape_type": "polygon", "points": outline[:, 0].tolist()}
    height, width = mask.shape
    document = {"imagePath": photo.name, "imageHeight": height, "imageWidth": width}
    photo.with_suffix(".json").write_text(json.dumps({**document, "shapes": [shape]}))


@pytest.mark.slow
def test_from_labelme_to_cutouts_by_the_page(tmp_path, monkeypatch, capsys, eager, undrawn):
    """Every command of the page on one's own photos in its order, with training in smoke form."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        photo, mask = draw_pair(48, 64, number)
        folder = Path("mine/train" if number < 10 else "mine/test")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"car{number:02d}_1.jpg"
        write_photo(path, photo)
        if number < 10:
            labelme(path, mask)
    lines = [words for words in command_lines(text_of("docs/own_photos.md")) if words]
    assert {words[0] for words in lines} == {"carvana-tf"}
    called = []
    for _, name, *arguments in lines:
        if any(word.endswith("annotations.json") for word in arguments):
            continue  # COCO, instead of LabelMe
        if name == "train":
            arguments += ["--smoke"]
        if name == "plan":  # the page goes on with a network that is downloaded
            arguments += ["--nomeasure", "--network=simple_unet", "--weights=none"]
        run = "models/simple_unet-fold_0-smoke/"
        arguments = [word.replace("models/mobilenet-fold_0/", run) for word in arguments]
        assert cli.main(commands.find(name), arguments) == 0, capsys.readouterr().err
        called.append(name)
    assert called == [
        *("import_masks", "check_data", "make_folds", "plan", "train", "predict", "evaluate"),
        *("predict", "cut_out", "suggest_photos", "export_masks"),
    ]
    assert [path.name for path in sorted(Path("cutouts").glob("*.png"))] == [
        "car10_1.png",
        "car11_1.png",
    ]


@pytest.mark.skipif(not shutil.which("mkdocs"), reason="the extra docs is not installed")
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loading = re.compile(r"<(?:script|img|iframe|source)[^>]*?\ssrc=\"?(?:https?:)?//[^\s>]*")
    linked = re.compile(r"<link(?![^>]*canonical)[^>]*?\shref=\"?(?:https?:)?//[^\s>]*")
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) >= len(PAGES)
    assert {url for text in pages.values() for url in loading.findall(text)} == set()
    assert {url for text in pages.values() for url in linked.findall(text)} == set()
