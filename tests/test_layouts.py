"""Folders as they lie on people's disks: whose files they are, and what is said of them; no file is decoded."""

import collections
import re

import pytest
from conftest import write_adni

from reading import layouts
from system.console import UserError

NAMED = r"(?P<subject>P\d+)_(?P<slice>\d+)"


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def people_of(sources):
    return {source.subject_id for source in sources}


def slices(people=8):
    return [f"P{person:02d}_{number}.png" for person in range(people) for number in (45, 46)]


def bids(kind="T1w", people=4):
    return [f"sub-{person:03d}/anat/sub-{person:03d}_{kind}.nii.gz" for person in range(people)]


# -- layouts that are known ---------------------------------------------------------------------------------------

KNOWN = {
    "classes and splits of any name": (
        "adni",
        [f"{s}/{c}/{s}{c}{p}_78.jpeg" for s in ("train", "Val", "test") for c in ("AD", "CN") for p in range(4)],
        (24, {"AD": 12, "CN": 12}, {"train": 8, "validation": 8, "test": 8}),
    ),
    "classes, folders of people, no split": (
        "adni",
        [f"{('AD', 'CN')[p % 2]}/002_S_{p:04d}/I{p}{scan}_70.png" for p in range(12) for scan in (1, 2)],
        (12, {"AD": 12, "CN": 12}, {}),
    ),
    "OASIS of Kaggle": (
        "oasis-kaggle",
        [f"Data/{('Mild Dementia', 'Non Demented')[p % 2]}/OAS1_{p:04d}_MR1_mpr-1_100.jpg" for p in range(12)],
        (12, {"Mild Dementia": 6, "Non Demented": 6}, {}),
    ),
    "OASIS of Kaggle, split": (
        "oasis-kaggle",
        [f"{('train', 'test')[p % 2]}/Non Demented/OAS1_{p:04d}_MR1_mpr-1_100.jpg" for p in range(12)],
        (12, {"Non Demented": 12}, {"test": 6}),
    ),
    "IXI": ("ixi", [f"IXI{p:03d}-{('Guys-0828-T1.nii.gz', 'HH-0829-T1.NII.GZ')[p % 2]}" for p in range(4)], (4,)),
    "ADNI's archive": (
        "adni-archive",
        [f"ADNI/{p:03d}_S_{p:04d}/MP-RAGE/2006-04-18_08_20_30.0/I{p}/ADNI_{p:03d}.nii" for p in range(4)],
        (4,),
    ),
    "OASIS-1": (
        "oasis1",
        [f"disc1/OAS1_{p:04d}_MR1/PROCESSED/MPRAGE/T88_111/OAS1_{p:04d}_t88_masked_gfc.img" for p in range(4)],
        (4,),
    ),
    "FreeSurfer, with visits": ("freesurfer", [f"b{p}{k}/mri/T1.mgz" for p in range(4) for k in ("", ".long.x")], (4,)),
    "BIDS": ("bids", bids(), (4,)),
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_known_layout_needs_no_options(tmp_path, case):
    expected, names, (people, *of) = KNOWN[case]
    layout, sources, notices = layouts.find(touch(tmp_path, names))
    assert (layout, len(sources), len(people_of(sources)), notices) == (expected, len(names), people, [])
    labels = collections.Counter(source.label for source in sources if source.label)
    splits = collections.Counter(source.split for source in sources if source.split)
    assert [labels, splits] == (of or [{}, {}])


def test_folders_of_people_are_not_taken_for_classes(tmp_path):
    touch(tmp_path, [f"train/person{person}/slice_{number}.png" for person in range(6) for number in range(3)])
    with pytest.raises(UserError, match="6 folders would be classes .* say so by --subject-regex"):
        layouts.find(tmp_path)


def test_what_is_not_used_is_counted_and_named(tmp_path):
    touch(tmp_path, [*bids(), *bids("run-2_T1w"), *bids("T2w"), *bids("space-MNI_T1w"), *bids("mask_T1w"), "a.bmp"])
    _, sources, notices = layouts.find(tmp_path)
    assert len(sources) == 8
    assert notices == [
        "images or volumes that are not like sub-*/[ses-*/]anat/*_T1w.nii[.gz] are left out: "
        "12 (sub-000/anat/sub-000_T2w.nii.gz the first)",
        "4 sessions have several volumes, and all are used (sub-000_T1w.nii.gz and sub-000_run-2_T1w.nii.gz the "
        "first): name those that are meant by --subject-regex",
        "files of kinds that are not read: 1 .bmp",
    ]
    touch(
        tmp_path / "oasis", [f"keras_png_slices_{kind}_slice_0.nii.png" for kind in ("test/case_1", "seg_test/seg_1")]
    )
    assert layouts.find(tmp_path / "oasis")[2] == [
        "label maps are left aside: 1 (keras_png_slices_seg_test/seg_1_slice_0.nii.png the first)"
    ]


def test_a_folder_too_high_or_too_low_is_answered_by_the_right_one(tmp_path):
    adni = write_adni(tmp_path / "a" / "b" / "adni", train=1, test=1, slices=1)
    for wrong, right in (
        (tmp_path / "a", adni),
        (adni / "AD_NC" / "train", adni / "AD_NC"),
        (adni / "AD_NC" / "train" / "AD", adni / "AD_NC"),
    ):
        with pytest.raises(UserError, match=f"found .* did you mean --data-dir {right}"):
            layouts.find(wrong)


def test_dicom_is_answered_by_the_program_that_converts_it(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match=r"holds DICOM files \(IM0001\); convert them first, for example: dcm2niix"):
        layouts.find(tmp_path)


def test_hidden_files_and_thumbnails_are_nobodys(tmp_path):
    """As macOS, Jupyter, file servers and viewers leave them."""
    names = ["._p1_0.png", ".ipynb_checkpoints/p1_1.png", "@eaDir/p2_0.png", "a/Thumbs/p3.png", "__MACOSX/p4.png"]
    assert layouts.walk(touch(tmp_path, [*names, "thumb_study/p1_0.png"])) == ["thumb_study/p1_0.png"]


def test_links_are_followed_twice_to_one_folder_and_once_around_a_loop(tmp_path):
    touch(tmp_path / "real", bids())
    for person in range(4):
        (tmp_path / "data" / f"sub-{person:03d}").mkdir(parents=True)
        (tmp_path / "data" / f"sub-{person:03d}/ses-1").symlink_to(tmp_path / "real" / f"sub-{person:03d}")
    assert {(source.subject_id, source.session) for source in layouts.find(tmp_path / "data")[1]} == {
        (f"sub-{person:03d}", "ses-1") for person in range(4)
    }
    pool = touch(tmp_path / "x" / "pool", slices())
    (pool / "loop").symlink_to(tmp_path / "x")
    assert len(layouts.find(tmp_path / "x", subject_regex=NAMED)[1]) == 16
    (tmp_path / "x" / "again").symlink_to(pool)
    with pytest.raises(UserError, match="both are slice 45 of P00"):
        layouts.find(tmp_path / "x", subject_regex=NAMED)


# -- flat folders, and expressions that errors suggest ------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [f"P{person:02d}.nii.gz" for person in range(20)],
        ["anna.nii", "bert.NII.GZ", "P.01.mgz"],
        ["Guys-001_T1.img", "Guys-002_T1.img", "HH-001_T1.img"],
    ],
)
def test_a_flat_folder_of_volumes_is_one_person_a_file(tmp_path, names):
    layout, sources, (notice,) = layouts.find(touch(tmp_path, names))
    assert (layout, len(people_of(sources))) == ("flat", len(names))
    assert notice.startswith(f"each of {len(names)} files is taken for another person (")


def suggested(folder, **how):
    """The expression that an error suggests for a folder, as one would paste it, and the error."""
    with pytest.raises(UserError) as caught:
        layouts.find(folder, **how)
    return re.findall("--subject-regex '([^']*)'", str(caught.value))[-1], str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ["P01_a.nii", "P01_b.nii", "P02_a.nii"],
        ["sub-01_ses-1_T2w.nii.gz", "sub-01_ses-2_T2w.nii.gz", "sub-02_ses-1_T2w.nii.gz"],
        ["T1_P01_a.mgz", "T1_P01_b.mgz", "T1_P02_a.mgz"],
        ["scan_anna_a.nii", "scan_anna_b.nii", "scan_bert_a.nii"],
    ],
)
def test_files_that_may_be_of_one_person_are_not_guessed(tmp_path, names):
    pattern, said = suggested(touch(tmp_path, names))
    assert f"may be of one person, such as {names[0]} and {names[1]};" in said
    assert "--layout flat if each file is another person" in said
    assert len(people_of(layouts.find(tmp_path, subject_regex=pattern)[1])) == 2
    assert len(people_of(layouts.find(tmp_path, "flat")[1])) == 3


@pytest.mark.parametrize(
    "names",
    [
        ["P00_45.png", "P00_46.png", "P01_45.png"],
        ["P1/slice_1.png", "P1/slice_2.png", "P2/slice_1.png"],
        ["P1/a/T1.nii.gz", "P2/a/T1.nii.gz"],
        ["all/P1/T1.nii.gz", "all/P2/T1.nii.gz"],
        ["a.png", "P01.tif"],
    ],
)
@pytest.mark.parametrize("how", [{}, {"subject_regex": r"(Q\d)"}, {"layout": "bids"}])
def test_a_suggested_expression_finds_the_people(tmp_path, names, how):
    pattern, _ = suggested(touch(tmp_path, names), **how)
    sources = layouts.find(tmp_path, subject_regex=pattern)[1]
    assert (len(sources), len(people_of(sources))) == (len(names), 2)


# -- a regular expression -----------------------------------------------------------------------------------------


def test_volumes_by_a_regular_expression(tmp_path):
    touch(tmp_path, [f"HCP/{100307 + p}/T1w/{kind}.nii.gz" for p in range(4) for kind in ("T1w_acpc_brain", "aparc")])
    layout, sources, (notice,) = layouts.find(tmp_path, subject_regex=r"(?P<subject>\d{6})/T1w/T1w_acpc")
    assert (layout, people_of(sources)) == ("regex", {str(100307 + p) for p in range(4)})
    assert notice.startswith("files that --subject-regex does not match are left out: 4 (")


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        (NAMED + "(?P<label>x)?", "its group 'label' matches in none of 16 files"),
        ("(?P<subject>P)(?P<sex>.)", "group 'sex' is none of subject, session, slice, label, split"),
        (r"(?P<subject>P\d+)_(?P<split>45|46)", "split '45' is none of train, training"),
        (r"(?P<subject>P\d+|x)", "matches 16 images and 1 volumes; let it end in the suffix"),
        (r"(?P<slice>\d)_(P\d)", "give the person's part a group"),
        ("a", "give the person's part a group"),
        (r"(\d", r"--subject-regex '\(\\d' is not a regular expression"),
    ],
)
def test_an_expression_that_cannot_be_meant_is_an_error(tmp_path, regex, message):
    with pytest.raises(UserError, match=message):
        layouts.find(touch(tmp_path, [*slices(), "x.nii"]), subject_regex=regex)


def test_without_a_number_slices_come_in_natural_order(tmp_path):
    touch(tmp_path, [f"P0_{number}.png" for number in range(1, 12)])
    sources = layouts.find(tmp_path, subject_regex=r"(?P<subject>P\d+)")[1]
    assert {source.path.name: source.slice_index for source in sources} == {f"P0_{n}.png": n - 1 for n in range(1, 12)}


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "dev", "testing"), ("imagesTr", "valid_set", "holdout")]
)
def test_a_split_by_folders_is_kept_and_said_and_leaves_out_nobody(tmp_path, names):
    touch(tmp_path, [f"{names[p % 3]}/P{p:02d}_{number}.png" for p in range(12) for number in (45, 46)])
    _, sources, notices = layouts.find(tmp_path, subject_regex=NAMED)
    split = collections.Counter(source.split for source in sources)
    assert split == {"train": 8, "validation": 8, "test": 8}
    assert notices == ["the folders' own split into train, validation and test is kept, as their names say it"]
    asked = layouts.find(tmp_path, subject_regex=r"(?P<split>\w+)/" + NAMED)[1]
    assert asked == sources
    with pytest.raises(UserError, match="did you mean --data-dir"):
        layouts.find(tmp_path / names[0], subject_regex=NAMED)
    touch(tmp_path, ["more/P77_1.png"])
    with pytest.raises(UserError, match="more/P77_1.png is in none; say which is which by a group 'split'"):
        layouts.find(tmp_path, subject_regex=NAMED)


# -- options, and folders without images --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no images found; looked for keras_png_slices.*CLASS.*sub-\*"),
        ({"layout": "oasis"}, "no images found; looked for keras_png_slices"),
        ({"subject_regex": "(a)"}, "no images found; looked for PNG"),
        ({"layout": "regex"}, "--layout regex needs --subject-regex"),
        ({"subject_regex": "(a)", "layout": "adni"}, "is for --layout regex"),
        ({"label_column": "dx", "layout": "adni"}, "--label-column dx: for tables of participants, not for --layout"),
    ],
)
def test_an_empty_folder_and_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        layouts.find(tmp_path, **options)
    with pytest.raises(UserError, match="no such folder"):
        layouts.find(tmp_path / "nowhere", subject_regex="(a)")


def test_a_label_column_where_there_are_no_columns(tmp_path):
    touch(tmp_path, ["keras_png_slices_test/case_1_slice_0.png"])
    with pytest.raises(UserError, match="--label-column dx: no participants.tsv in .* to take labels from"):
        layouts.find(tmp_path, label_column="dx")
