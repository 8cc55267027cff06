"""The demo cohort: the same each time, a brain, and a label that means something."""

import numpy as np
import PIL.Image
import pytest

from evaluation import metrics
from reading import layouts, phantom


@pytest.fixture(scope="module")
def people():
    return {label: [phantom.make_person([0, i], label) for i in range(n)] for label, n in (("AD", 2), ("NC", 1))}


def test_a_seed_is_a_person(people):
    again = phantom.make_person([0, 1], "AD")
    np.testing.assert_array_equal(again, people["AD"][1])
    assert np.abs(again.astype(int) - people["AD"][0]).mean() > 3


def test_slices_look_like_brains(people):
    for person in people["AD"] + people["NC"]:
        assert person.shape == (20, 240, 256)
        assert person.dtype == np.uint8
        for image in person:
            mask = metrics.head_mask(image / 255)
            assert 0.15 < mask.mean() < 0.6
            assert np.median(image[~mask]) == 0  # black around it
            assert image[:, :20].max() == image[:, -20:].max() == 0
            assert 0.4 < mask[:, :128].sum() / mask.sum() < 0.6  # two halves


def test_ad_people_have_larger_ventricles(people):
    def fluid(person):
        """Share of dark pixels in the middle of the brain, at the height of the lateral ventricles."""
        middle = person[12:18, 80:160, 98:158] / 255
        return (middle < 0.4).mean()

    ad, nc = ([fluid(person) for person in people[label]] for label in ("AD", "NC"))
    assert np.mean(ad) > 1.4 * np.mean(nc)


def test_cohort_is_written_as_adni_is_and_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "make_person", lambda seed, label: np.zeros((20, 240, 256), "uint8"))
    folder = tmp_path / "cohort"
    phantom.make_cohort(folder, num_people=5)
    layout, sources, _ = layouts.find(folder)
    assert layout == "adni"
    assert len(sources) == 5 * 20
    assert {source.label for source in sources} == {"AD", "NC"}
    assert sum(source.split == "test" for source in sources) == 20
    with PIL.Image.open(sources[0].path) as image:
        assert (image.mode, image.size) == ("L", (256, 240))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpeg")}
    phantom.make_cohort(folder, num_people=1)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpeg")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
    assert phantom.main([str(folder)]) == 1
