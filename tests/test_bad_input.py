"""Bad input, broadly: each ends in one line that names the file, none in another exception, a hang or a full memory."""

import csv
import gzip
import io
import os
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from conftest import write_bids, write_oasis

import dataset
from reading import decoding
from system.console import UserError

FEW = {"num_slices": 8, "slice_spacing_mm": 4}


def cut(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def flip(place):
    """Turns one bit of a byte; a negative place counts from the end, a fraction goes by the length."""

    def apply(path):
        content = bytearray(path.read_bytes())
        content[int(place * len(content)) if isinstance(place, float) else place] ^= 0x10
        path.write_bytes(content)

    return apply


def write(content):
    return lambda path: path.write_bytes(content)


def replace(make):
    """Puts something else in the place of the file."""

    def apply(path):
        path.unlink()
        make(path)

    return apply


def image(size, mode="L", kind="PNG", **options):
    return lambda path: PIL.Image.new(mode, size).save(path, kind, **options)


def claiming(width, height):
    """Writes another size into a PNG's header, and its checksum."""

    def apply(path):
        content = bytearray(path.read_bytes())
        struct.pack_into(">2I", content, 16, width, height)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
        path.write_bytes(content)

    return apply


def no_permission(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")


BAD_IMAGES = {
    **{f"PNG cut to {size} bytes": cut(size) for size in (0, 1, 8, 20, 33, 60)},
    "PNG, bit of the signature": flip(1),
    "PNG, bit of the header's length": flip(11),
    "PNG, bit of the width": flip(17),
    "PNG, bit of the bit depth": flip(24),
    "PNG, bit of a checksum": flip(30),
    "PNG, bit of the pixels": flip(0.5),
    **{
        f"JPEG cut to {size} bytes": lambda path, size=size: (image((64, 64), kind="JPEG")(path), cut(size)(path))
        for size in (2, 100, 300)
    },
    "JPEG without tables": write(b"\xff\xd8\xff\xda" + bytes(100) + b"\xff\xd9"),
    "text": write(b"not an image"),
    "a web page": write(b"<!doctype html><title>404</title>"),
    "an archive": write(b"PK\x03\x04" + bytes(200)),
    "a NIfTI header": write(struct.pack("<i", 348) + bytes(344)),
    "one pixel": image((1, 1)),
    "400 million pixels": claiming(20_000, 20_000),
    "20 000 x 20": image((20_000, 20), "1"),
    "a film": lambda path: PIL.Image.new("L", (64, 64)).save(
        path, "PNG", save_all=True, append_images=[PIL.Image.new("L", (64, 64), 255)]
    ),
    "a TIFF of NaN": lambda path: PIL.Image.fromarray(np.full((64, 64), np.nan, "float32")).save(path, "TIFF"),
    "a TIFF with an infinite pixel": lambda path: PIL.Image.fromarray(
        np.where(np.arange(64) == 5, np.inf, np.zeros((64, 64))).astype("float32")
    ).save(path, "TIFF"),
    "a TIFF without pixels": write(b"II*\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
    "a folder": replace(Path.mkdir),
    "a link to nowhere": replace(lambda path: path.symlink_to("nowhere")),
    "a link to itself": replace(lambda path: path.symlink_to(path.name)),
    "a pipe": replace(os.mkfifo),
    "no permission": no_permission,
}


SAID = {  # beside the name of the file
    "PNG cut to 0 bytes": "the file is empty",
    "PNG cut to 60 bytes": "truncated or damaged",
    "text": "not a readable image",
    "20 000 x 20": "20000 x 20 pixels",
    "a link to nowhere": "a link to a file that is not there",
    "gzip cut to 0 bytes": "the file is empty",
    "gzip of text": "not a readable volume",
    "gzip of more than it says": "unpacks to more than its header says",
    "terabytes": "claims 30000 x 30000 x 30000 voxels; of type int16, 1 to 100,000,000 can be read",
    "numbers of eight bytes": "of type float64, 1 to 50,000,000 can be read",
    "two volumes in one": "a 4-D image",
    "an affine of zeros": "its header claims voxels of 0 x 0 x 0 mm",
    "all zero": "every value is 0",
    "one value but for a few": "nearly every value is 100",
    "an infinite voxel": "infinite",
    "ten slices": "10 axial slices of 2 mm do not hold",
}


@pytest.mark.parametrize("how", BAD_IMAGES)
def test_bad_images(tmp_path, cache_dir, how):
    folder = write_oasis(tmp_path / "oasis", train=2, validate=0, test=0, slices=2)
    victim = folder / "keras_png_slices_train" / "case_002_slice_1.nii.png"
    BAD_IMAGES[how](victim)
    check(folder, victim, cache_dir, SAID.get(how, ": "))


def check(folder, victim, cache_dir, said, **options):
    """The bad file is named in one line; without it the rest is used."""
    with pytest.raises(UserError, match=said) as caught:
        dataset.load(folder, cache_dir=cache_dir, **options)
    assert str(victim) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    data = dataset.load(folder, skip_bad_files=True, cache_dir=cache_dir, **options)
    assert [bad for bad, _ in data.bad_files] == [str(victim)]
    assert str(victim.relative_to(folder)) not in set(data.slices.path)


def header(**fields):
    """Changes fields of a plain NIfTI file's header: `name=(place, format, *values)`."""

    def apply(path):
        content = bytearray(gzip.decompress(path.read_bytes()))
        for place, form, *values in fields.values():
            struct.pack_into(form, content, place, *values)
        path.write_bytes(gzip.compress(content))

    return apply


def voxels(change):
    def apply(path):
        volume = nibabel.load(path)
        changed = change(np.asarray(volume.dataobj).astype("float32"))
        nibabel.save(nibabel.Nifti1Image(changed, volume.affine), path)

    return apply


NAN = float("nan")
BAD_VOLUMES = {
    **{f"gzip cut to {size} bytes": cut(size) for size in (0, 1, 12, 2000, -8)},
    "gzip, bit of the method": flip(2),
    "gzip, bit of the data": flip(0.5),
    "gzip, bit of the checksum": flip(-6),
    "gzip of text": write(gzip.compress(b"not a volume")),
    "gzip of more than it says": lambda path: path.write_bytes(
        gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**26), 1)
    ),
    "gzip of nothing": write(gzip.compress(b"")),
    "not gzip at all": write(b"not a volume"),
    **{
        f"NIfTI cut to {size} bytes": lambda path, size=size: path.write_bytes(
            gzip.compress(gzip.decompress(path.read_bytes())[:size])
        )
        for size in (1, 347, 348, 352, 10_000)
    },
    "terabytes": header(dim=(40, "<8h", 3, 30_000, 30_000, 30_000, 1, 1, 1, 1)),
    "numbers of eight bytes": header(dim=(40, "<8h", 3, 450, 450, 450, 1, 1, 1, 1), datatype=(70, "<2h", 64, 64)),
    "no voxels": header(dim=(40, "<8h", 3, 0, 48, 40, 1, 1, 1, 1)),
    "fewer than no voxels": header(dim=(40, "<8h", 3, -4, 48, 40, 1, 1, 1, 1)),
    "nine axes": header(dim=(40, "<h", 9)),
    "two axes": header(dim=(40, "<8h", 2, 40, 48, 1, 1, 1, 1, 1)),
    "a type that is none": header(datatype=(70, "<h", 77)),
    "complex voxels": header(datatype=(70, "<2h", 32, 64)),
    "coloured voxels": header(datatype=(70, "<2h", 128, 24)),
    "a NaN affine": header(srow=(280, "<4f", NAN, NAN, NAN, NAN)),
    "an affine of zeros": header(srow=(280, "<12f", *[0] * 12)),
    "data far behind the end": header(offset=(108, "<f", 1e9)),
    "an infinite intercept": header(slope=(112, "<2f", 1, float("inf"))),
    "all zero": voxels(np.zeros_like),
    "an infinite voxel": voxels(lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.inf, x)),
    "one value but for a few": voxels(lambda x: np.where(np.arange(x.size).reshape(x.shape) < 30, 0 * x, 100)),
    "two volumes in one": voxels(lambda x: np.stack([x, x], axis=-1)),
    "ten slices": voxels(lambda x: x[:, :, :10]),
}


@pytest.mark.parametrize("how", BAD_VOLUMES)
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning:nibabel.*")
def test_bad_volumes(tmp_path, cache_dir, how):
    folder = write_bids(tmp_path / "bids", people=2)
    victim = folder / "sub-01/anat/sub-01_T1w.nii.gz"
    BAD_VOLUMES[how](victim)
    check(folder, victim, cache_dir, SAID.get(how, ": "), **FEW)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (NAN, NAN, NAN), (1e6, 1e6, 1e6), (1, 1, 1), (2, 2, 2)])
def test_where_a_header_disagrees_with_its_affine_the_affine_is_taken_and_told(tmp_path, cache_dir, sizes):
    folder = write_bids(tmp_path / "bids", people=2)
    header(pixdim=(80, "<3f", *sizes), sform=(252, "<2h", 0, 1))(folder / "sub-01/anat/sub-01_T1w.nii.gz")
    data = dataset.load(folder, cache_dir=cache_dir, **FEW)
    assert data.about["voxel_size"] == {"2 x 2 x 2 mm": 2}
    said = [notice for notice in data.notices if "the affine is taken (sub-01/anat/sub-01_T1w.nii.gz" in notice]
    assert len(said) == (sizes != (2, 2, 2))


@pytest.mark.parametrize("quaternion", [(0, 0, 0), (0, 0, 1), (1, 1, 0)])
def test_a_qform_of_other_axes_disagrees(tmp_path, quaternion):
    """As the sform has them, turned by half, and no rotation at all."""
    path = write_bids(tmp_path / "bids", people=1) / "sub-00/anat/sub-00_T1w.nii.gz"
    header(qform=(252, "<2h", 1, 1), quaternion=(256, "<3f", *quaternion))(path)
    assert decoding.open_volume(path)[2] == ["disagreement"] * (quaternion != (0, 0, 0))


BAD_TABLES = {
    "two bytes that are no text": b"participant_id\tgroup\nsub-00\t\xff\xfe\n",
    "a spreadsheet": b"PK\x03\x04" + bytes(range(256)),
}


@pytest.mark.parametrize("how", BAD_TABLES)
def test_bad_participants(tmp_path, cache_dir, how):
    folder = write_bids(tmp_path / "bids", people=1)
    (folder / "participants.tsv").write_bytes(BAD_TABLES[how])
    with pytest.raises(UserError, match=r"participants\.tsv: ") as caught:
        dataset.load(folder, cache_dir=cache_dir, **FEW, label_column="group")
    assert "\n" not in str(caught.value)


def test_two_files_for_one_slice(tmp_path, cache_dir):
    folder = write_oasis(tmp_path / "oasis") / "keras_png_slices_train"
    (folder / "case_002_slice_1.png").write_bytes((folder / "case_002_slice_1.nii.png").read_bytes())
    with pytest.raises(UserError, match="both are slice 1 of case_002; remove one"):
        dataset.load(folder.parent, cache_dir=cache_dir)


def test_two_files_for_one_volume(tmp_path, cache_dir):
    folder = write_bids(tmp_path / "bids", people=1)
    packed = folder / "sub-00/anat/sub-00_T1w.nii.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.raises(UserError, match="sub-00_T1w.nii.gz: both are one volume; remove one"):
        dataset.load(folder, cache_dir=cache_dir, **FEW)


@pytest.mark.parametrize("name", ["with space", "Müller-東京", "new\nline", "quote'\"", "comma,semicolon;", "-dash"])
def test_odd_names_are_people_like_others(tmp_path, cache_dir, name):
    folder = tmp_path / "data"
    for person in [*(f"p{i}" for i in range(7)), name]:
        for number in range(2):
            path = folder / person / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.full((32, 32), 9 * number, "uint8")).save(path)
    data = dataset.load(folder, subject_regex=r"(?s)(?P<subject>.+)/(?P<slice>\d)", cache_dir=cache_dir)
    slices, _ = dataset.split(data.slices, seed=0)
    assert slices[slices.subject_id == name].slice_index.tolist() == [0, 1]
    rows = list(csv.DictReader(io.StringIO(slices.to_csv(index=False), newline="")))
    assert [row["subject_id"] for row in rows] == slices.subject_id.tolist()


def test_a_name_that_is_no_text(tmp_path, cache_dir):
    folder = tmp_path / "data"
    folder.mkdir()
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/p\xff_1.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    with pytest.raises(UserError, match="the name is not UTF-8; rename it"):
        dataset.load(folder, subject_regex=r"(?P<subject>p.)_(?P<slice>\d)", cache_dir=cache_dir)


@pytest.mark.parametrize("which", ["npy", "json"])
@pytest.mark.parametrize("how", ["cut", "empty", "foreign"])
def test_a_damaged_cache_is_named(tmp_path, cache_dir, which, how):
    folder = write_oasis(tmp_path / "oasis")
    dataset.load(folder, cache_dir=cache_dir)
    (victim,) = cache_dir.glob(f"*.{which}")
    if how == "foreign" and which == "npy":
        np.save(victim, np.zeros((2, 3)))
    else:
        content = victim.read_bytes()
        victim.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "foreign": b'{"a": 1}'}[how])
    with pytest.raises(UserError, match=victim.stem) as caught:
        dataset.load(folder, cache_dir=cache_dir)
    assert "remove" in str(caught.value)
    assert "\n" not in str(caught.value)
    for path in cache_dir.glob(f"{victim.stem}.*"):
        path.unlink()
    dataset.load(folder, cache_dir=cache_dir)  # what the line said to do helps
