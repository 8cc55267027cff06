"""Splits and file names for whatever people and names there may be."""

import random
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset
from reading import layouts
from system.console import UserError

letters = st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",))
ids = st.text(letters, min_size=1, max_size=12)
names = ids.filter(lambda name: not name.startswith(".") and len(name.encode()) < 200)
labels, sides = st.sampled_from(["", "AD", "NC"]), st.sampled_from(["", "train", "test"])
people = st.dictionaries(ids, st.tuples(labels, st.lists(sides, min_size=1, max_size=4)), min_size=1, max_size=30)


def as_slices(cohort):
    rows = [
        (f"{person}/{number}", person, "", number, 0.5, label, side, 0)
        for person, (label, sides) in cohort.items()
        for number, side in enumerate(sides)
    ]
    return pd.DataFrame(rows, columns=dataset.COLUMNS)


@given(people, st.integers(0, 5), st.randoms())
@settings(deadline=None, max_examples=60)
def test_nobody_is_in_two_splits_whoever_they_are(cohort, seed, shuffler: random.Random):
    slices = as_slices(cohort)
    try:
        result, _ = dataset.split(slices, seed)
    except UserError as error:
        if "each needs one at least" not in str(error):
            raise
        return
    assert result.drop(columns="split").equals(slices.drop(columns="split"))
    side_of = {}
    for one in result.itertuples():
        assert one.split in dataset.SPLITS
        assert side_of.setdefault(one.subject_id, one.split) == one.split
    assert set(side_of.values()) == set(dataset.SPLITS)
    for person, (_, sides) in cohort.items():  # whoever was for testing, in part or whole, stays so
        if "test" in sides:
            assert side_of[person] == "test"
    order = list(range(len(slices)))
    shuffler.shuffle(order)
    again, _ = dataset.split(slices.iloc[order], seed)
    assert dict(zip(again.subject_id, again.split, strict=True)) == side_of


@given(names, st.integers(0, 10**6), st.sampled_from(["jpeg", "jpg", "png"]))
@settings(deadline=None, max_examples=50)
def test_an_adni_name_is_read_back(person, number, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "AD_NC" / "train" / "NC" / f"{person}_{number}.{suffix}"
        path.parent.mkdir(parents=True)
        path.touch()
        _, (source,), _ = layouts.find(Path(folder))
    assert (source.subject_id, source.slice_index, source.label) == (person, number, "NC")


@given(names.filter(lambda name: "_" not in name))
@settings(deadline=None, max_examples=25)
def test_a_name_of_another_kind_is_said(name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train" / "AD" / f"{name}.png"
        path.parent.mkdir(parents=True)
        path.touch()
        with pytest.raises(UserError, match="found 1 images, such as"):
            layouts.find(Path(folder))
