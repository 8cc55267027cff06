"""The report's tables, and the report in a browser."""

import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from evaluation import report


def summary(mean, low=None, high=None):
    return {"mean": mean, "ci95": None if low is None else [low, high], "people": 2, "slices": 4}


@pytest.fixture
def page(tmp_path):
    """The path of a small report."""
    Image.new("L", (8, 8), 128).save(tmp_path / "samples.png")
    reconstruction = {name: summary(0.5, 0.25, 0.75) for name in report.RECONSTRUCTION}
    result = {
        "reconstruction": reconstruction,
        "baselines": {"black": reconstruction, "PCA": reconstruction | {"bits_per_pixel": 0.5}},
        "codebook": {"codes_in_use": 1.0, "perplexity": 9.0, "entropy_bits_per_pixel": 0.2, "bits_per_pixel": 0.5},
        "decoder": "plain",
        "faults": ["a fault & its reason"],
        "prior": {
            "bits_per_code": 2.0,
            "bits_per_code_ci95": None,
            "bits_per_image": 128.0,
            "bits_per_pixel": 0.125,
            "layout_bits_per_image": 9.0,
        },
    }
    config = {
        "data": {"title": "a <made-up> cohort"},
        "splits_sha256": "abc",
        "options": {"data": {"data_dir": "/home/me", "seed": 3}},
    }
    people = [
        {"subject_id": "p10", "label": "", "ssim": 0.9},
        {"subject_id": "p9", "label": "AD", "ssim": 0.1},
        {"subject_id": "p2", "label": "NC", "ssim": None},
        {"subject_id": "p1", "label": "NC", "ssim": 0.5},
    ]
    report.write(tmp_path, config, result, pd.DataFrame(people), "credit & licence")
    return tmp_path / "report.html"


class Cells(HTMLParser):
    """Collects the text of all cells of a page."""

    def __init__(self, page):
        super().__init__()
        self.inside, self.found = False, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "td"

    def handle_data(self, data):
        if self.inside:
            self.found.append(data)


def test_the_tables_say_what_was_found(page):
    text = page.read_text(encoding="utf-8")
    cells = Cells(text).found
    assert cells.count("0.500 (0.250 to 0.750)") == 3 * 3  # of the five figures, three have three digits
    assert cells.count("0.50 (0.25 to 0.75)") == 3
    assert "100%" in cells
    assert "2.000" in cells  # without an interval
    assert cells[cells.index("p2") + 2] == "-"  # a person's mean of nothing
    assert "None" not in text
    assert "nan" not in cells
    assert "a &lt;made-up&gt; cohort" in text
    assert "<made-up>" not in text
    assert "credit &amp; licence" in text
    assert "/home/me" not in text
    assert "Warning: a fault &amp; its reason" in text
    assert text.count("<img") == 1  # the one picture that is there


def test_a_browser_sorts_the_people_and_needs_no_network(page):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, of requirements-dev.txt")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium, for example: apt install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        requests, errors = [], []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(page.as_uri())

        def order():
            return tab.locator("#people tbody tr td:first-child").all_inner_texts()

        assert order() == ["p10", "p9", "p2", "p1"]
        heads = tab.locator("#people th button")
        heads.nth(2).click()
        assert [person for person in order() if person != "p2"] == ["p9", "p1", "p10"]
        assert tab.locator("#people th").nth(2).get_attribute("aria-sort") == "ascending"
        heads.nth(2).click()
        assert [person for person in order() if person != "p2"] == ["p10", "p1", "p9"]
        heads.nth(0).click()
        assert order() == sorted(order())
        assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
        assert errors == []
        browser.close()
