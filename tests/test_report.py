"""The report's tables, the report in a browser, and what training shows while it runs."""

import base64
import datetime
import io
import math
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import tensorflow
from conftest import command, write_adni
from PIL import Image

import train
from evaluation import figures, metrics, report
from running import models, opening, run_folder
from running.config import read_config


def summary(mean, low=None, high=None):
    return {"mean": mean, "ci95": None if low is None else [low, high], "people": 2, "slices": 4}


HEADS = {
    "number": 7,
    "neighbours": {"drawn": 0.8, "decoded_test": 0.82, "test": 0.79, "independent": 0.5},
    "axis_power_ratio": {"drawn": [1.0, 0.25], "decoded_test": [1.0, 0.5], "independent": [9.0, math.nan]},
    **dict.fromkeys(
        ("coronal", "sagittal"), {"drawn": 50.0, "independent": 500.0, "decoded_floor": 20.0, "floor": 3.0}
    ),
    **dict.fromkeys(
        ("brain_ml", "ventricles_ml"),
        dict.fromkeys(("drawn", "real", "decoded_test", "test"), {"mean": 1400.0, "sd": 130.0}) | {"distance": 0.25},
    ),
    "copies": {
        "share_nearer_than_any_test_person": 0.02,
        **{f"{kind}_ms_ssim_{name}": 0.6 for kind in ("median", "most") for name in ("drawn", "test")},
    },
}
PICTURES = ("reconstructions", "samples", "volumes")


def write(folder, **changes):
    """A small report in a folder, with other results where they are given; returns its path."""
    for name in PICTURES:
        Image.new("L", (600, 300), 128).save(folder / f"{name}.png")
    reconstruction = {name: summary(0.5, 0.25, 0.75) for name in report.RECONSTRUCTION}
    result = {
        "reconstruction": reconstruction,
        "baselines": {"black": reconstruction, "PCA": reconstruction | {"bits_per_pixel": 0.5}},
        "codebook": {"codes_in_use": 1.0, "perplexity": 9.0, "entropy_bits_per_pixel": 0.2, "bits_per_pixel": 0.5},
        "decoder": "plain",
        "faults": ["a fault & its reason"],
        "missing": {"samples": "how samples stand to real slices; there are none"},
        "splits": {
            "train": {"people": 71, "slices": 1420, "labels": {"AD": 30, "NC": 40, "": 1}},
            "test": {"people": 4, "slices": 83, "labels": {"AD": 1, "NC": 3, "": 0}},
        },
        "training": {"vqvae": {"epochs": 12, "seconds": 90.0}},
        "heads": HEADS,
        "prior": {
            "bits_per_code": 2.0,
            "bits_per_code_ci95": None,
            "bits_per_image": 128.0,
            "bits_per_pixel": 0.125,
            "coarse_bits_per_image": 9.0,
        },
    }
    config = {
        "data": {
            "title": "a <made-up> cohort",
            "layout": "bids",
            "image_size": 128,
            "labels": ["AD", "NC"],
            "notices": ["two people stand on both sides", "a second notice"],
            "about": {
                "voxel_size": {"2 x 2 x 2 mm": 75},
                "orientation": {"RAS": 75},
                "plane": "axial",
                "pixel_mm": 2.0,
            },
        },
        "splits_sha256": "abc" * 20,
        "versions": {"python": "3.11.7", "keras": "3.15.1"},
        "options": {"data": {"data_dir": "/home/me", "seed": 3}},
    }
    people = [
        {"subject_id": "p10", "label": "", "slices": 20, "ssim_head": 0.9},
        {"subject_id": "p9", "label": "AD", "slices": 20, "ssim_head": 0.1},
        {"subject_id": "p2", "label": "NC", "slices": 23, "ssim_head": None},
        {"subject_id": "p1", "label": "NC", "slices": 20, "ssim_head": 0.5},
    ]
    how = (pd.DataFrame(people), "credit & licence", "python evaluate.py --run-dir runs/x", portraits)
    report.write(folder, config, result | changes, *how)
    return folder / "report.html"


TEST = pd.DataFrame({"subject_id": ["p9", "p9", "p9", "p1", "p1", "p2"], "slice_position": [0, 0.5, 1, 0.1, 0.6, 0.7]})
OF_TEST = [{"ssim_head": value} for value in (0.5, 0.6, 0.1, 0.8, 0.7, math.nan)]


def show(places):
    """Images as bright as their place, and outputs that are a little brighter."""
    images = np.zeros((len(places), 16, 16), "float32") + np.array(places)[:, None, None] / 10
    return images, images + 0.1


def portraits(most_bytes):
    return report.pictures_of_people(TEST, OF_TEST, show, most_bytes)


@pytest.fixture
def page(tmp_path):
    """The path of a small report."""
    return write(tmp_path)


class Cells(HTMLParser):
    """Collects the text of all cells of a page, what they mean left out, and the attributes of every image."""

    def __init__(self, page):
        super().__init__()
        self.inside, self.found, self.images, self.ids = False, [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = self.inside and tag != "small" or tag == "td"
        if tag == "td":
            self.found.append("")
        if tag == "img":
            self.images.append(dict(attrs))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        if self.inside:
            self.found[-1] += data.strip().replace(report.NO_BREAK, " ")


def test_the_tables_say_what_was_found(page):
    text = page.read_text(encoding="utf-8")
    cells = Cells(text).found
    assert cells.count("0.500 (0.250 to 0.750)") == 3 * 3  # of the five figures, three have three digits
    assert cells.count("0.50 (0.25 to 0.75)") == 3
    assert "100%" in cells
    assert "2.000" in cells  # without an interval
    assert cells[cells.index("p2") + 3] == "-"  # a person's mean of nothing
    assert "None" not in text
    assert "nan" not in cells
    assert "a &lt;made-up&gt; cohort" in text
    assert "<made-up>" not in text
    assert "credit &amp; licence" in text
    assert "/home/me" not in text
    assert "Warning: a fault &amp; its reason" in text
    for name in report.PEOPLE:  # names of columns of people.csv
        assert "_" not in name or f">{name}<" not in text


def test_the_summary_says_whose_data_how_and_by_what(page):
    text = page.read_text(encoding="utf-8")
    cells = Cells(text).found
    assert cells[:12] == ["train", "71", "1420", "30", "40", "1", "test", "4", "83", "1", "3", "0"]
    for said in (
        "people: AD",
        "2 x 2 x 2 mm (75)",
        "axial, 128 x 128 pixels, 2 mm a pixel",
        "<li>two people stand on both sides</li><li>a second notice</li>",
        "python evaluate.py --run-dir runs/x",
        "python 3.11.7, keras 3.15.1",
        "abc" * 20,
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"<code>{report.code_version()}</code>",
    ):
        assert said in text
    assert text.index("abc" * 20) < text.index('id="reconstruction"')  # before any figure


def test_how_to_cite_is_said_with_the_repositorys_own_file_or_without(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    text = write(tmp_path).read_text(encoding="utf-8")
    assert "credit &amp; licence" in text
    assert "The software: name its repository, code " in text
    (tmp_path / "CITATION.cff").write_text('cff-version: 1.2.0\ntitle: "Brains & more"\nversion: 0.1.0\n')
    text = write(tmp_path).read_text(encoding="utf-8")
    assert "The software: Brains &amp; more, version 0.1.0, code " in text
    assert "cff-version: 1.2.0\ntitle: " in text


def test_what_is_missing_is_said_with_its_reason(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    assert "Not here: how samples stand to real slices; there are none." in text
    assert report.NO_HEAD in text
    (tmp_path / "volumes.png").unlink()
    text = write(tmp_path, heads=HEADS, missing={}).read_text(encoding="utf-8")
    assert "there are none" not in text


def test_whole_heads_have_a_table(page):
    cells = Cells(page.read_text(encoding="utf-8")).found
    row = cells[cells.index("likeness of neighbouring slices") :][:6]
    assert row[1:] == ["0.800", "0.500", "0.820", "0.790", ""]
    row = cells[cells.index("finest detail along the axis") :][:6]
    assert row[1:] == ["0.25", "-", "0.50", "1.00", ""]
    row = cells[cells.index("coronal views against test people") :][:6]
    assert row[1:] == ["50.00", "500.00", "20.00", "", "3.00"]
    assert "1400 ± 130" in cells


def test_every_picture_is_there_once_and_says_what_it_shows(page):
    found = Cells(page.read_text(encoding="utf-8"))
    assert len(found.images) == len(PICTURES) + 3  # and of the people who have test slices
    for image in found.images:
        assert len(image["alt"]) > 40
        assert ".png" not in image["alt"]
    assert len(set(found.ids)) == len(found.ids)


def test_the_version_of_the_code_is_that_of_git_or_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.code_version() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert report.code_version() == "unknown"


def test_a_person_is_shown_at_the_middle_and_at_the_worst():
    found = report.pictures_of_people(TEST, OF_TEST, show)
    assert list(found) == ["p9", "p1", "p2"]  # the worst mean first, none at the end
    image = np.asarray(Image.open(io.BytesIO(found["p9"]["jpeg"])))
    assert image.shape == (32, 48, 3)
    np.testing.assert_allclose(image[8, [8, 24], 0], [0.1 * 255, 0.2 * 255], atol=4)  # its second slice, and its output
    np.testing.assert_allclose(image[24, [8, 24], 0], [0.2 * 255, 0.3 * 255], atol=4)  # its third one
    assert image[8, 40, 0] > image[8, 40, 2]  # too bright is red
    assert "0.50 of the height, SSIM inside the head 0.600" in found["p9"]["caption"]
    assert "Below, the worst: the slice at 1.00 of the height, SSIM inside the head 0.100" in found["p9"]["caption"]
    assert np.asarray(Image.open(io.BytesIO(found["p2"]["jpeg"]))).shape == (16, 48, 3)
    assert "SSIM inside the head -" in found["p2"]["caption"]


def test_pictures_of_people_stop_where_the_file_would_be_too_large(tmp_path, monkeypatch):
    whole = report.pictures_of_people(TEST, OF_TEST, show)
    most = len(whole["p9"]["jpeg"]) * 4 // 3 + 10
    assert list(report.pictures_of_people(TEST, OF_TEST, show, most)) == ["p9"]
    used = sum(len(base64.b64encode((write(tmp_path).parent / f"{name}.png").read_bytes())) for name in PICTURES)
    monkeypatch.setattr(report, "MOST_BYTES", used + most)
    text = write(tmp_path).read_text(encoding="utf-8")
    assert "3 people have no picture here" in text
    assert text.count('href="#person-') == 1


@pytest.fixture
def tab(page):
    """The report in a browser of 838 pixels."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, of requirements-dev.txt")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium, for example: apt install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 838, "height": 700})
        requests, errors = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.as_uri())
        yield tab
        assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]  # it needs no network
        assert errors == []
        browser.close()


def test_a_browser_sorts_the_people(tab):
    def order():
        return tab.locator("#people tbody tr td:first-child").all_inner_texts()

    assert order() == ["p10", "p9", "p2", "p1"]
    heads = tab.locator("#people th button")
    heads.nth(3).click()
    assert order() == ["p9", "p1", "p10", "p2"]  # what is missing comes last
    assert tab.locator("#people th").nth(3).get_attribute("aria-sort") == "ascending"
    heads.nth(3).click()
    assert order() == ["p10", "p1", "p9", "p2"]
    heads.nth(0).click()
    assert order() == sorted(order())
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_navigation_leads_to_every_section(tab):
    links = tab.locator("nav a")
    assert links.count() == tab.locator("h2").count() == 9
    for link in links.all():
        link.click()
        heading = tab.locator(f"h2{link.get_attribute('href')}")
        assert heading.inner_text().startswith(link.inner_text())
        assert 0 <= heading.bounding_box()["y"] < 700
    top = tab.locator("nav").bounding_box()  # which has stayed in sight, above the heading
    assert 0 <= top["y"] <= heading.bounding_box()["y"] - top["height"]


def test_every_image_has_a_text(tab):
    texts = tab.evaluate("[...document.images].map(image => image.alt)")
    assert len(texts) == len(PICTURES) + 3
    assert all(len(text) > 40 for text in texts)


@pytest.mark.parametrize("width", [390, 838])
def test_a_phone_scrolls_tables_and_not_the_page(tab, width):
    tab.set_viewport_size({"width": width, "height": 700})
    assert tab.evaluate("innerWidth") == width
    for summary_of_details in tab.locator("details summary").all():
        summary_of_details.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    reaches = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    outside = tab.evaluate(f"{reaches}.filter(e => !e.closest('.scroll') && !e.closest('pre')).map(e => e.outerHTML)")
    assert outside == []
    inside = tab.evaluate("[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth > e.clientWidth)")
    assert any(inside) == (width == 390)
    assert "width=device-width" in tab.locator("meta[name=viewport]").get_attribute("content")


@pytest.mark.parametrize("width", [390, 838])
def test_a_click_enlarges_a_picture_and_another_one_closes_it(tab, width):
    tab.set_viewport_size({"width": width, "height": 700})
    image = tab.locator("#zoom-samples img")

    def shown():
        return image.bounding_box()["width"]

    small = shown()
    assert small <= width
    tab.locator("#zoom-samples .open").click()
    assert shown() >= max(600, width - 48) > small  # its own size, or all of the window
    tab.locator("#zoom-samples .close").click()
    assert shown() == small
    tab.locator("#zoom-samples .open").press("Enter")
    assert shown() > small
    tab.keyboard.press("Escape")
    assert shown() == small


@pytest.mark.parametrize("width", [390, 838])
def test_the_row_of_a_person_leads_to_their_picture(tab, width):
    tab.set_viewport_size({"width": width, "height": 700})
    for person in ("p9", "p1", "p2"):
        picture = tab.get_by_alt_text(f"Slices of {person}:")
        assert not picture.is_visible()
        tab.locator("#people").get_by_text(person, exact=True).click()
        assert picture.is_visible()
        box = picture.bounding_box()
        assert 300 < box["width"] <= width
        tab.locator(".person .close:visible").click()
        assert not picture.is_visible()
        assert tab.locator("#people tr:target").inner_text().startswith(person)
    assert tab.locator("#people").get_by_text("p10", exact=True).get_attribute("href") is None  # who has no picture


# -- What training shows ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a small run of the first stage."""
    folder = tmp_path_factory.mktemp("progress")
    write_adni(folder / "adni")
    assert train.main(command(folder, "run", "--stage", "vqvae", vqvae_epochs=2)) == 0
    return folder


def test_each_epoch_of_the_vqvae_is_measured_and_shown(trained):
    """The figures are those of evaluate.py on the same slices."""
    run = trained / "run"
    history = run_folder.read_history(run / "vqvae_history.csv")
    assert list(history[0])[-2:] == ["val_ssim", "val_psnr_db"]
    best = min(history, key=lambda row: row["val_reconstruction_loss"])
    data = opening.find_data(run, read_config(run))
    vqvae = models.load_vqvae(run)
    images = data.pixels(data.of("validation"))
    assert len(images) < train.WATCHED
    found = [
        metrics.slice_metrics(*pair)
        for pair in zip(images, vqvae.decode(vqvae.encode(images[..., None]))[..., 0], strict=True)
    ]
    for name in ("ssim", "psnr_db"):
        assert best[f"val_{name}"] == pytest.approx(np.mean([one[name] for one in found]), abs=1e-4)
    with Image.open(run / "progress.png") as picture:
        assert picture.width > 800
    (log,) = (run / "tensorboard" / "vqvae" / "pictures").iterdir()
    events = [value for event in tensorflow.compat.v1.train.summary_iterator(str(log)) for value in event.summary.value]
    assert [value.tag for value in events] == ["input above reconstruction"] * 2


def test_a_run_of_before_goes_on_and_its_curves_are_drawn(trained, tmp_path, monkeypatch):
    """Its history lacks the new columns: they begin where it goes on, with what they would have been."""
    arguments = command(trained, "older", "--stage", "vqvae", vqvae_epochs=2)
    path = trained / "older" / "vqvae_history.csv"
    with monkeypatch.context() as patch:
        measured = train.Progress.on_epoch_end

        def stop_in_the_second(self, epoch, logs=None):
            if epoch:
                raise KeyboardInterrupt
            measured(self, epoch, logs)

        patch.setattr(train.Progress, "on_epoch_end", stop_in_the_second)
        assert train.main(arguments) == 130
    old = pd.read_csv(path).drop(columns=["val_ssim", "val_psnr_db"])
    old.to_csv(path, index=False)
    figures.history(tmp_path / "old.png", {"vqvae": run_folder.read_history(path), "coarse": [], "prior": []}, "")
    assert train.main(arguments) == 0
    (first, second), (_, expected) = (run_folder.read_history(trained / run / path.name) for run in ("older", "run"))
    assert list(first) == [*old, "val_ssim", "val_psnr_db"]
    assert math.isnan(first["val_ssim"])
    assert second | {"seconds": 0} == expected | {"seconds": 0}
    figures.history(tmp_path / "mixed.png", {"vqvae": [first, second]}, "")
    figures.history(tmp_path / "none.png", {"vqvae": []}, "")
