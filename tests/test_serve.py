"""The page of tools/serve.py, in a browser where there is one."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_in_memory import WEIGHTS, make_model

import carvana_tf
from carvana_tf import cli, commands
from carvana_tf.data.images import write_photo
from carvana_tf.errors import UserError
from carvana_tf.inference import page

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    make_model(root / "model.keras", *WEIGHTS[0])
    noise = np.random.default_rng(5).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_photo(root / "a [b]*.jpg", cv2.resize(noise, (70, 50), interpolation=cv2.INTER_CUBIC))
    (root / "bad.jpg").write_bytes(b"none")
    return root


def test_each_photo_has_mask_cutout_and_time_and_a_bad_one_its_reason(place, tmp_path):
    model = carvana_tf.load(place / "model.keras", gpu="", cutout=True)
    answer = page.Answers(ValueError, model, tmp_path, most=2).answer
    *_, (text, shown, files) = answer([str(place / "a [b]*.jpg"), str(place / "bad.jpg")])
    first, second = text.splitlines()
    assert re.fullmatch(r"- a \\\[b\\\]\\\*\.jpg: [\d.]+ s, object [\d.]+% of the photo", first)
    assert "bad.jpg" in second
    assert [caption for _, caption in shown] == ["a [b]*.jpg: mask", "a [b]*.jpg: cut-out"]
    (expected,) = carvana_tf.load(place / "model.keras", gpu="", cutout=True).predict(
        place / "a [b]*.jpg"
    )
    mask, cutout = (cv2.imread(file, cv2.IMREAD_UNCHANGED) for file in files)
    assert np.array_equal(mask > 0, expected.mask())
    assert np.array_equal(cv2.cvtColor(cutout, cv2.COLOR_BGRA2RGBA), expected.cutout)
    with pytest.raises(ValueError, match="3 photos are too many; give at most 2"):
        next(answer(["x"] * 3))


def test_a_port_in_use_is_one_line():
    with page.listening(0) as first:
        assert first.getsockname()[0] == "127.0.0.1"
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port} cannot be used"):
            page.listening(port).__enter__()


def test_without_gradio_the_extra_is_named(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in page._SETTINGS:
        monkeypatch.setenv(name, "")
    command = commands.find("serve")
    assert cli.main(command, [f"--weights={place / 'model.keras'}"]) == 1
    errors = capsys.readouterr().err
    assert "pip install -e '.[serve]'" in errors and errors.count("\n") == 1


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-background-networking"]
        started = driver.chromium.launch(executable_path=found, args=flags)
        yield started
        started.close()


@pytest.fixture
def server(place, tmp_path):
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools/serve.py", "--weights=model.keras", "--port=0", "--gpu="],
        cwd=place,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = (process.stdout.readline().split() or [""])[0]
    yield types.SimpleNamespace(url=url, process=process, folder=tmp_path / "tmp")
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_photo_dropped_in_a_browser(browser, server, place):
    tab = browser.new_page()
    requests, messages = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.goto(server.url)
    tab.wait_for_selector("#photos input[type=file]", state="attached", timeout=60_000)
    tab.set_input_files("#photos input[type=file]", place / "a [b]*.jpg")
    tab.wait_for_selector("#status >> text=of the photo", timeout=60_000)
    # Gradio names uploads without what some file systems forbid.
    pictures = tab.locator("button img")
    pictures.nth(1).wait_for(timeout=60_000)
    assert all(pictures.nth(i).evaluate("image => image.naturalWidth") == 70 for i in range(2))
    with tab.expect_download() as download:
        tab.locator("a[download*=cutout]").first.click()
    picture = cv2.imread(str(download.value.path()), cv2.IMREAD_UNCHANGED)
    assert picture.shape == (50, 70, 4)
    local = re.compile(r"(data:|blob:|http://127\.0\.0\.1:)")
    assert [url for url in requests if not local.match(url)] == []
    # Gradio's own, at every upload.
    assert {*messages} <= {"Method not implemented."}
    assert any(server.folder.iterdir())
    server.process.send_signal(signal.SIGINT)
    out, errors = server.process.communicate(timeout=30)
    assert (out, errors) == ("ended; uploaded photos are removed\n", "")
    assert server.process.returncode == 0
    assert list(server.folder.iterdir()) == []


@pytest.mark.slow
def test_sigterm_removes_uploads_too(server):
    pytest.importorskip("gradio", reason="gradio is not installed")
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(server.url):
            break
        time.sleep(0.1)
    (folder,) = server.folder.iterdir()
    (folder / "uploaded.jpg").write_bytes(b"")
    server.process.send_signal(signal.SIGTERM)
    out, _ = server.process.communicate(timeout=30)
    assert (out, server.process.returncode) == ("ended; uploaded photos are removed\n", 0)
    assert list(server.folder.iterdir()) == []
