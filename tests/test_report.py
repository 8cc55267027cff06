"""The report's tables, the report in a browser, and what training shows while it runs."""

import base64
import datetime
import io
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import tensorflow
from conftest import blob, make_slices
from PIL import Image

import dataset
import modules
from evaluation import figures, metrics, progress, report


def summary(mean, low=None, high=None):
    return {"mean": mean, "ci95": None if low is None else [low, high], "people": 2, "slices": 4}


VIEWS = {"drawn": 50.0, "independent": 500.0, "decoded_test": 30.0, "decoded_floor": 20.0, "floor": 3.0}
VOLUMES = dict.fromkeys(("drawn", "real", "decoded_test", "test"), {"mean": 1400.0, "sd": 130.0}) | {"distance": 0.25}
HEADS = {
    "number": 7,
    "neighbours": {"drawn": 0.8, "decoded_test": 0.82, "test": 0.79, "independent": 0.5},
    "axis_power_ratio": {"drawn": [1.0, 0.25], "decoded_test": [1.0, 0.5], "independent": [9.0, math.nan]},
    **dict.fromkeys(("coronal", "sagittal"), VIEWS),
    **dict.fromkeys(("brain_ml", "ventricles_ml"), VOLUMES),
    "copies": {
        "share_nearer_than_any_test_person": 0.02,
        **{f"{kind}_ms_ssim_{name}": 0.6 for kind in ("median", "most") for name in ("drawn", "test")},
    },
}
FIGURES = {name: summary(0.5, 0.25, 0.75) for name in report.RECONSTRUCTION}
RESULT = {
    "reconstruction": FIGURES,
    "baselines": {"black": FIGURES, "PCA": FIGURES | {"bits_per_pixel": 0.5}},
    "codebook": {
        "codes_in_use": 511 / 512,
        "perplexity_by_level": [9.0, 30.0],
        "effective_dimension": 3.25,
        "entropy_bits_per_pixel": 0.2,
        "bits_per_pixel": 0.5,
    },
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
        "bits_by_level": [1.5, 2.25],
        "bits_per_image": 128.0,
        "bits_per_pixel": 0.125,
        "coarse_bits_per_image": 9.0,
    },
}
CONFIG = {
    "data": {
        "title": "a <made-up> cohort",
        "layout": "regex",
        "image_size": 128,
        "labels": ["AD", "NC"],
        "notices": ["two people stand on both sides", "a second notice"],
        "about": {
            "voxel_size": {"2 x 2 x 2 mm": 75},
            "orientation": {"RAS": 75},
            "native_pixels": {"91 x 109": 75},
            "plane": "axial",
            "pixel_mm": 2.0,
        },
    },
    "splits_sha256": "abc" * 20,
    "versions": {"python": "3.11.7", "keras": "3.15.1"},
    "models": {},
    "options": {"data": {"data_dir": "/home/me", "seed": 3, "subject_regex": "(?P<subject>P[0-9]+)"}},
}
PEOPLE = pd.DataFrame(
    [("p10", "", 20, 0.9), ("p9", "AD", 20, 0.1), ("p2", "NC", 23, None), ("p1", "NC", 20, 0.5)],
    columns=["subject_id", "label", "slices", "ssim_head"],
)
TEST = pd.DataFrame({"subject_id": ["p9", "p9", "p9", "p1", "p1", "p2"], "slice_position": [0, 0.5, 1, 0.1, 0.6, 0.7]})
OF_TEST = [{"ssim_head": value} for value in (0.5, 0.6, 0.1, 0.8, 0.7, math.nan)]
PICTURES = ("reconstructions", "samples", "volumes")


def portraits():
    def show(places):
        """Images as bright as their place, and outputs that are a little brighter."""
        images = np.zeros((len(places), 16, 16), "float32") + np.array(places)[:, None, None] / 10
        return images, images + 0.1

    return report.pictures_of_people(TEST, OF_TEST, show)


def write(folder, pictures=PICTURES, **changes):
    """A small report in a folder, with other results where they are given; returns its text."""
    for name in pictures:
        Image.new("L", (600, 300), 128).save(folder / f"{name}.png")
    result = {name: value for name, value in (RESULT | changes).items() if value is not None}
    report.write(folder, CONFIG, result, PEOPLE, "credit & licence", "python evaluate.py --run-dir runs/x", portraits())
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path):
    """The text of a small report."""
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
    cells = Cells(page).found
    assert cells.count("0.500 (0.250 to 0.750)") == 3 * 3  # of the five figures, three have three digits
    assert cells.count("0.50 (0.25 to 0.75)") == 3
    assert "99.8%" in cells  # 511 of 512
    assert "100%" not in page.partition("<body>")[2]
    assert "2.000" in cells  # without an interval
    assert cells[cells.index("p2") + 3] == "-"  # a person's mean of nothing
    assert "None" not in page
    assert "nan" not in cells
    for name in report.PEOPLE:  # names of columns of people.csv
        assert "_" not in name or f">{name}<" not in page


def test_the_summary_says_whose_data_how_and_by_what(page):
    assert Cells(page).found[:12] == ["train", "71", "1420", "30", "40", "1", "test", "4", "83", "1", "3", "0"]
    for said in (
        "a &lt;made-up&gt; cohort",
        "Warning: a fault &amp; its reason",
        "credit &amp; licence",
        "people: AD",
        "by --subject-regex (?P&lt;subject&gt;P[0-9]+)",
        "2 x 2 x 2 mm (75)",
        "axial, 128 x 128 pixels, 2 mm a pixel",
        "<li>two people stand on both sides</li><li>a second notice</li>",
        "python evaluate.py --run-dir runs/x",
        "python 3.11.7, keras 3.15.1",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"<code>{report.code_version()}</code>",
    ):
        assert said in page
    assert page.index("abc" * 20) < page.index('id="reconstruction"')  # before any figure
    assert "<made-up>" not in page
    assert "/home/me" not in page


def test_how_to_cite_is_said_with_the_repositorys_own_file_or_without(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "The software: name its repository, code unknown." in write(tmp_path)
    (tmp_path / "CITATION.cff").write_text('cff-version: 1.2.0\ntitle: "Brains & more"\nversion: 0.1.0\n')
    monkeypatch.setenv("PATH", "")  # without git
    text = write(tmp_path)
    assert "The software: Brains &amp; more, version 0.1.0, code unknown." in text
    assert "cff-version: 1.2.0\ntitle: " in text


def test_what_is_missing_is_said_with_its_reason_and_heads_only_of_a_run_that_draws_them(page, tmp_path):
    assert "Not here: how samples stand to real slices; there are none." in page
    assert "Not here: pictures of 1 more people" in page
    assert report.NO_HEAD in page
    assert page.count(">Volumes") == 2  # the menu and the section
    (tmp_path / "volumes.png").unlink()
    text = write(tmp_path, PICTURES[:2], heads=None, missing={})
    assert "there are none" not in text
    assert ">Volumes" not in text
    assert "Not here: no" in write(tmp_path, PICTURES[:2], heads=None, missing={"heads": "no"})


def test_whole_heads_have_a_table_whose_columns_say_whose_they_are(page):
    cells = Cells(page).found
    assert [*report.HEADS_OF.values()][2:] == [
        "test people, decoded",
        "test people",
        "training people, decoded",
        "training people",
        "all people",
    ]
    for name, values in (
        ("likeness of neighbouring slices", ["0.800", "0.500", "0.820", "0.790", "", "", ""]),
        ("finest detail along the axis", ["0.25", "-", "0.50", "1.00", "", "", ""]),
        ("coronal views against test people", ["50.00", "500.00", "30.00", "", "20.00", "3.00", ""]),
    ):
        assert cells[cells.index(name) :][1:8] == values
    assert "1400 ± 130" in cells


def test_every_picture_is_there_once_and_says_what_it_shows(page):
    found = Cells(page)
    assert len(found.images) == len(PICTURES) + 3  # and of the people who have test slices
    for image in found.images:
        assert len(image["alt"]) > 40
        assert ".png" not in image["alt"]
    assert len(set(found.ids)) == len(found.ids)
    volumes = report.PICTURES["volumes.png"]
    assert "“real”, is a test person" in volumes.caption
    assert "“real, decoded” is that person" in volumes.caption
    assert "real test person's after the VQ-VAE, and last that real one" in volumes.alt


def test_a_person_is_shown_at_the_middle_and_at_the_worst(monkeypatch):
    found = portraits()
    assert list(found) == ["p9", "p1", "p2"]  # the worst mean first, none at the end
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["jpeg"])))) for one in found.values()]
    assert [image.shape for image in images] == [(32, 48, 3), (16, 48, 3), (16, 48, 3)]
    image = images[0]
    np.testing.assert_allclose(image[8, [8, 24], 0], [0.1 * 255, 0.2 * 255], atol=4)  # its second slice, and its output
    np.testing.assert_allclose(image[24, [8, 24], 0], [0.2 * 255, 0.3 * 255], atol=4)  # its third one
    assert image[8, 40, 0] > image[8, 40, 2]  # too bright is red
    assert "0.50 of the height, SSIM inside the head 0.600" in found["p9"]["caption"]
    assert "Below, the worst: the slice at 1.00 of the height, SSIM inside the head 0.100" in found["p9"]["caption"]
    assert "SSIM inside the head -" in found["p2"]["caption"]
    monkeypatch.setattr(report, "MOST_PORTRAITS", 1)
    assert list(portraits()) == ["p9"]


@pytest.fixture
def tab(page, chromium, tmp_path):
    """The report in a browser of 838 pixels."""
    tab = chromium.new_page(viewport={"width": 838, "height": 700})
    requests, errors = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    url = (tmp_path / "report.html").as_uri()
    tab.goto(url)
    yield tab
    assert [url for url in requests if not url.startswith("data:")] == [url]  # it needs no network
    assert errors == []
    tab.close()


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


@pytest.mark.parametrize("width", [390, 838, 1280])
def test_a_phone_scrolls_tables_and_not_the_page_and_a_desk_is_filled(tab, width):
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
    assert tab.evaluate("[...document.querySelectorAll('table')].every(e => e.offsetWidth >= e.parentNode.clientWidth)")
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


def test_each_epoch_of_the_vqvae_is_measured_and_shown(tmp_path, rng):
    """The figures are those of evaluate.py on the same slices."""
    slices = make_slices(8, split="validation").assign(row=np.arange(16))
    data = dataset.Data(
        np.stack([blob(rng, 32, 32) for _ in range(16)]), slices, "made up", "", "regex", "", [], [], {}
    )
    callback = progress.Progress(data, tmp_path, "vqvae", before=1, epochs=3)
    vqvae, logs = modules.VQVAE(32, base_filters=4, num_embeddings=16, embedding_dim=4), {}
    callback.set_model(vqvae)
    callback.on_epoch_end(0, logs)
    callback.on_train_end()
    images = data.pixels(slices)
    found = metrics.batch_metrics(images, vqvae.decode(vqvae.encode(images[..., None]))[..., 0])
    for name in ("ssim", "psnr_db"):
        assert logs[f"val_{name}"] == pytest.approx(np.mean([values[name] for values in found]), abs=1e-4)
    with Image.open(tmp_path / "progress.png") as picture:
        assert picture.width > 800
    (log,) = (tmp_path / "tensorboard" / "vqvae" / "pictures").iterdir()
    events = [value for event in tensorflow.compat.v1.train.summary_iterator(str(log)) for value in event.summary.value]
    assert [value.tag for value in events] == ["input above reconstruction"]


def test_curves_of_stages_that_have_not_begun_are_left_out(tmp_path):
    rows = [{"epoch": epoch, "loss": 1.0, "val_reconstruction_loss": 0.5, "seconds": 1.0} for epoch in (1, 2)]
    for histories in ({"vqvae": []}, {"vqvae": rows, "coarse": [], "prior": []}):
        figures.history(tmp_path / "history.png", histories, "")
        assert (tmp_path / "history.png").exists()
