"""Labels from tables of participants, as people write them; no file is decoded."""

import unicodedata

import pytest

from reading import layouts
from system.console import UserError

HEAD = "participant_id\tgroup\n"


@pytest.fixture
def read(tmp_path):
    """Labels by person and notices for eight people with this table."""

    def read(table, **how):
        for person in range(8):
            path = tmp_path / f"sub-{person:02d}/anat/sub-{person:02d}_T1w.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (tmp_path / "participants.tsv").write_text(table, encoding="utf-8")
        _, sources, notices = layouts.find(tmp_path, **how)
        return [source.label for source in sources], notices

    return read


def rows(separator="\t", name="sub-{:02d}", labels="AB" * 4):
    return "".join(f"{name.format(i)}{separator}{label}\n" for i, label in enumerate(labels))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("table", "separator"),
    [
        ("participant_id,age,group\n" + rows(",6,"), ","),
        ("Participant_ID;Group\n" + rows(";"), ";"),
        ("participant_id\tDiagnosis\n" + rows("\t ", name="{}"), ""),
        ("\n# exported\nparticipant_id\tnote (a, b, c, d)\tgroup\n" + rows("\t\t"), ""),
    ],
)
def test_columns_may_be_separated_named_and_preceded_in_any_way(read, table, separator, mark):
    labels, notices = read(mark + table)
    assert labels == ["A", "B"] * 4
    assert notices == [f"participants.tsv is not separated by tabs but by {separator!r}, and read so"] * bool(separator)


def test_missing_labels_are_none_and_blanks_nothing(read):
    assert read(HEAD + rows(labels=("A", "B", "NA", "NaN", "N/A", "", "A ", "n/a")))[0] == [*"AB", *[""] * 4, "A", ""]


@pytest.mark.parametrize(
    ("table", "notice"),
    [
        (HEAD + "X1\tAD\n", "0 of 8 people have a label in it; its ids are like 'X1'"),
        (HEAD + rows(labels=("AD", "ad") * 4), "labels that differ in case alone are taken for different: AD, ad"),
        (HEAD + rows() + "sub-00\tB\n", "1 people have several labels in the table, and the first is taken: sub-00"),
        ("participant_id\tage\n" + rows(), "has none of the columns diagnosis, group, dx; it has participant_id, age"),
    ],
)
def test_what_is_odd_in_a_table_is_told(read, table, notice):
    assert notice in "\n".join(read(table)[1])


@pytest.mark.parametrize(
    ("table", "column", "message"),
    [
        (HEAD + "X1\tAD\n", "group", "--label-column group: .*0 of 8 people have a label in it"),
        (HEAD + rows(), "dx", "no column 'dx'; it has participant_id, group"),
        ("name\tgroup\n" + rows(), "group", "participants.tsv: no column 'participant_id'"),
    ],
)
def test_a_column_that_is_asked_for_must_give_labels(read, table, column, message):
    with pytest.raises(UserError, match=message):
        read(table, label_column=column)


def test_a_label_is_one_however_its_accents_are_written(read, tmp_path):
    whole, apart = (unicodedata.normalize(form, "Démence") for form in ("NFC", "NFD"))
    assert read(HEAD + rows(labels=(whole, apart) * 4))[0] == [whole] * 8
    assert read(f"participant_id\t{apart}\n" + rows(), label_column=whole)[0] == ["A", "B"] * 4
    for label in (whole, apart):
        path = tmp_path / "images" / "train" / label / f"{len(label)}_1.png"
        path.parent.mkdir(parents=True)
        path.touch()
    assert {source.label for source in layouts.find(tmp_path / "images")[1]} == {whole}


def test_a_diagnosis_by_visit(read, tmp_path):
    for person in range(8):
        folder = tmp_path / f"sub-{person:02d}"
        for visit in ("ses-0", "ses-1"):
            (folder / visit / "anat").mkdir(parents=True)
            (folder / visit / "anat" / f"{folder.name}_T1w.nii.gz").touch()
        later = "AD" if person % 2 else "MCI"
        (folder / f"{folder.name}_sessions.tsv").write_text(f"session_id\tdiagnosis\nses-0\tMCI\nses-1\t{later}\n")
    labels, _ = read("participant_id\tsex\n", label_column="diagnosis")
    assert labels == ["", "MCI", "MCI", "", "MCI", "AD"] * 4  # the first is of no visit
