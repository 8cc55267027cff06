"""app.py in a subprocess, as a person starts it, and in a real browser: a shipped run, nothing is trained."""

import csv
import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from predict import TrainedModel

if not importlib.util.find_spec("gradio"):
    pytest.skip("needs Gradio, of requirements-app.txt", allow_module_level=True)

ROOT = Path(__file__).parent.parent
RUN = ROOT / "pretrained/ixi"
TABS = "Draw", "Your scan", "Complete", "Uncommon", "Brain", "Card"
PATIENCE = 180_000  # milliseconds, for a machine that does other work


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and output folder of a page at work."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    command = [sys.executable, ROOT / "app.py", "--run-dir", RUN, "--output-dir", folder, "--port", str(port)]
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder)
    line = process.stdout.readline()
    assert line.startswith(f"open http://127.0.0.1:{port}/ in a browser"), (folder / "errors.txt").read_text()
    yield f"http://127.0.0.1:{port}", folder
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    process.stdout.close()
    assert not list(folder.glob("uploads_*"))  # which held the uploads


@pytest.fixture
def opened(server, chromium):
    """Opens the page, for one person each time, and waits for the run."""
    contexts, requests, errors = [], [], []

    def open_page(width=1280):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(server[0])
        tab.get_by_text("trained on IXI").wait_for()
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith((server[0], "data:", "blob:"))] == []  # it needs no network
    assert errors == []


def choose(tab, name):
    tab.get_by_role("tab", name=name, exact=True).click()


def press(tab, name):
    tab.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def enter(tab, label, number):
    tab.get_by_role("spinbutton", name=label).locator("visible=true").fill(str(number))
    tab.keyboard.press("Tab")


def download(tab):
    """The files of the zip that the button downloads, by name, once the work is done."""
    tab.get_by_text("files are in").locator("visible=true").wait_for()
    with tab.expect_download() as waiting:
        press(tab, "Download all: PNG and CSV")
    with zipfile.ZipFile(waiting.value.path()) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def pixels(found, name):
    with PIL.Image.open(io.BytesIO(found[name])) as image:
        return np.asarray(image)


def test_two_people_at_once_get_their_own_slices_and_the_right_ones(opened):
    people = [opened(), opened()]
    for seed, tab in enumerate(people):
        enter(tab, "How many", 2)
        enter(tab, "Seed", seed)
    for tab in people:
        press(tab, "Draw")
    model = TrainedModel(RUN)
    for seed, tab in enumerate(people):
        found = download(tab)
        rows = list(csv.DictReader(io.StringIO(found["samples.csv"].decode())))
        assert [row["seed"] for row in rows] == [str(seed)] * 2
        tab.locator("img[src*='sample_0001.png']").first.wait_for()
        drawn = np.stack([pixels(found, row["file"]) for row in rows])
        expected = (model.sample(2, seed, slice_position=0.6) * 255).round()
        assert np.abs(drawn - expected).mean() < 0.1
        with PIL.Image.open(io.BytesIO(found["samples/sample_0000.png"])) as image:
            assert image.text["made_by"].endswith("not for diagnosis")


def test_a_slice_is_painted_over_and_its_completions_are_downloaded(opened, server):
    tab = opened()
    choose(tab, "Complete")
    tab.get_by_text("Example", exact=True).locator("visible=true").nth(1).wait_for()  # beside the button
    press(tab, "Complete")
    tab.get_by_text("paint over a part of the slice first").wait_for()
    canvas = tab.locator("canvas").locator("visible=true").first
    tab.wait_for_timeout(3000)  # the editor shows no sign of being ready
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x - 30, y)
    tab.mouse.down()
    tab.mouse.move(x + 30, y + 5, steps=6)
    tab.mouse.up()
    enter(tab, "How many draws", 2)
    press(tab, "Complete")
    found = download(tab)
    mask, image = pixels(found, "mask.png"), pixels(found, "input.png")
    assert 0.001 < mask.mean() < 0.2
    drawn = [pixels(found, f"samples/sample_000{i}.png") for i in range(2)]
    for one in drawn:
        np.testing.assert_array_equal(one[~mask], image[~mask])
    assert (drawn[0] != drawn[1])[mask].any()
    rows = list(csv.DictReader(io.StringIO(found["samples.csv"].decode())))
    assert [row["seed"] for row in rows] == ["0", "1"]
    enter(tab, "How many draws", 8)
    press(tab, "Complete")
    tab.get_by_text("1 of 8").locator("visible=true").wait_for()
    press(tab, "Stop")
    tab.get_by_text("s, stopped").locator("visible=true").wait_for()
    choose(tab, "Uncommon")
    press(tab, "Map")  # which waits for the draw that had begun
    tab.locator("img[src*='map.png']").wait_for()
    latest = max(server[1].glob("completion_*/"), key=lambda path: path.stat().st_mtime)
    assert 1 <= len(list((latest / "samples").glob("*.png"))) < 8


def test_a_wrong_file_is_refused_in_a_line_and_a_right_one_is_shown(opened, server, tmp_path):
    tab = opened()
    choose(tab, "Your scan")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "scan.png").write_text("no image")
    (tmp_path / "scan.nii.gz").write_bytes(b"no volume")
    upload = tab.locator("input[type=file]").first
    for name, why in (
        ("notes.txt", "not a kind of file"),
        ("scan.png", "not a readable image"),
        ("scan.nii.gz", "not"),
    ):
        upload.set_input_files(tmp_path / name)
        line = tab.get_by_text(f"{name}: {why}").first.inner_text()
        assert "\n" not in line
        assert str(tmp_path) not in line
        tab.get_by_label("Close").or_(tab.get_by_test_id("toast-close")).first.click()
    assert "Traceback" not in (server[1] / "errors.txt").read_text()
    upload.set_input_files(ROOT / "examples/slice.png")
    tab.get_by_text("pixels are shrunk to 128 x 128").locator("visible=true").wait_for()
    tab.get_by_text("bits a place").wait_for()
    for name in ("Input", "Reconstruction", "Difference", "Bits"):
        assert tab.get_by_test_id("block-label").filter(has_text=name).count() == 1


def test_a_phone_shows_all_tabs_and_scrolls_in_one_direction(opened):
    tab = opened(390)
    for name in TABS:
        choose(tab, name)
        tab.wait_for_timeout(500)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name
    tab.get_by_text("Model card").wait_for()
    choose(tab, "Brain")
    tab.get_by_text("This run draws single slices.").wait_for()


def status_of(url, data=None, headers=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_no_file_outside_of_the_output_folder_is_served(server, tmp_path):
    address, folder = server
    (folder / "inside.txt").write_text("inside")
    (tmp_path / "outside.txt").write_text("outside")
    assert status_of(f"{address}/gradio_api/file={folder / 'inside.txt'}") == 200
    for path in (ROOT / "README.md", RUN / "config.json", tmp_path / "outside.txt", "/etc/passwd", "../app.py"):
        assert status_of(f"{address}/gradio_api/file={path}") in (403, 404)
    asked = {"data": [str(RUN), {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}
    call, kind = f"{address}/gradio_api/call/read", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(call, json.dumps(asked).encode(), kind), timeout=60) as answer:
        number = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{call}/{number}", timeout=60) as answer:
        assert answer.readline() == b"event: error\n"


def test_too_large_an_upload_is_refused(server):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for megabytes, status in ((1, 200), (65, 413)):
        data = head + bytes(megabytes * 2**20) + b"\r\n--x--\r\n"
        assert status_of(f"{server[0]}/gradio_api/upload", data, kind) == status


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--port", "0"], "error: --port 0: must be 1 to 65535"),
        (["--run-dir", "nowhere"], "error: --run-dir nowhere: no trained run; it has no prior.keras"),
        (["--share"], "error: unrecognized arguments: --share"),
    ],
)
def test_a_wrong_option_is_one_line(options, line):
    ended = subprocess.run([sys.executable, ROOT / "app.py", *options], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", line + "\n")
