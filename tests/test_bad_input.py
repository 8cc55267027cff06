"""Bad input, broadly: each ends in one line that names the file, none in another exception, a hang or a full memory."""

import csv
import gzip
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from conftest import write_bids, write_oasis

import dataset
from system.console import UserError

ROOT = Path(__file__).parent.parent


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


def no_permission(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")


BAD_IMAGES = {
    **{f"PNG cut to {size} bytes": cut(size) for size in (0, 1, 7, 8, 20, 33, 40, 60)},
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
    "20 000 x 20 000": image((20_000, 20_000), "1"),
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


@pytest.mark.parametrize("how", BAD_IMAGES)
def test_bad_images(tmp_path, cache_dir, how):
    folder = write_oasis(tmp_path / "oasis", size=64)
    victim = folder / "keras_png_slices_train" / "case_002_slice_1.nii.png"
    BAD_IMAGES[how](victim)
    check(folder, victim, cache_dir)


def check(folder, victim, cache_dir, **options):
    """The bad file is named in one line; without it the rest is used."""
    with pytest.raises(UserError) as caught:
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
    **{f"gzip cut to {size} bytes": cut(size) for size in (0, 1, 9, 12, 200, 2000, -8)},
    "gzip, bit of the method": flip(2),
    "gzip, bit of the data": flip(0.5),
    "gzip, bit of the checksum": flip(-6),
    "gzip of text": write(gzip.compress(b"not a volume")),
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
    "two volumes in one": voxels(lambda x: np.stack([x, x], axis=-1)),
    "ten slices": voxels(lambda x: x[:, :, :10]),
}


@pytest.mark.parametrize("how", BAD_VOLUMES)
@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning:nibabel.*")
def test_bad_volumes(tmp_path, cache_dir, how):
    folder = write_bids(tmp_path / "bids")
    victim = folder / "sub-03/anat/sub-03_T1w.nii.gz"
    BAD_VOLUMES[how](victim)
    check(folder, victim, cache_dir, num_slices=8, slice_spacing_mm=4)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (NAN, NAN, NAN), (1e6, 1e6, 1e6)])
def test_voxel_sizes_come_from_the_affine(tmp_path, cache_dir, sizes):
    """Whatever the header's other field says."""
    folder = write_bids(tmp_path / "bids")
    header(pixdim=(80, "<3f", *sizes), sform=(252, "<2h", 0, 1))(folder / "sub-03/anat/sub-03_T1w.nii.gz")
    data = dataset.load(folder, cache_dir=cache_dir, num_slices=8, slice_spacing_mm=4)
    assert data.about["voxel_size"] == {"2 x 2 x 2 mm": 8}


def test_a_bomb_takes_little_memory(tmp_path):
    """Eight billion voxels announced in less than a megabyte of gzip, and 400 million pixels in a PNG."""
    folder = write_bids(tmp_path / "bids")
    victim = folder / "sub-03/anat/sub-03_T1w.nii.gz"
    content = bytearray(gzip.decompress(victim.read_bytes())[:352])
    struct.pack_into("<8h", content, 40, 3, 2000, 2000, 2000, 1, 1, 1, 1)
    struct.pack_into("<2h", content, 70, 2, 8)
    with gzip.open(victim, "wb", compresslevel=1) as file:
        file.write(content)
        for _ in range(100):
            file.write(bytes(10**6))
    image((20_000, 20_000), "1")(write_oasis(tmp_path / "oasis") / "keras_png_slices_test" / "case_900_slice_0.png")
    program = (
        "import dataset, files, sys\n"
        "for folder in sys.argv[1:]:\n"
        "    try: dataset.load(folder, cache_dir=folder + '_cache', num_slices=8, slice_spacing_mm=4)\n"
        "    except console.UserError as error: print(error)\n"
        "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    folders = [str(tmp_path / "bids"), str(tmp_path / "oasis")]
    done = subprocess.run([sys.executable, "-c", program, *folders], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 3, done.stderr
    assert "2000 x 2000 x 2000 voxels" in done.stdout
    assert "case_900_slice_0.png" in done.stdout
    assert int(done.stdout.split()[-1]) < 2 * 2**20  # KiB


BAD_TABLES = {
    "no participant_id": b"name\tgroup\nsub-00\tAD\n",
    "two bytes that are no text": b"participant_id\tgroup\nsub-00\t\xff\xfe\n",
    "a spreadsheet": b"PK\x03\x04" + bytes(range(256)),
}


@pytest.mark.parametrize("how", BAD_TABLES)
def test_bad_participants(tmp_path, cache_dir, how):
    folder = write_bids(tmp_path / "bids")
    (folder / "participants.tsv").write_bytes(BAD_TABLES[how])
    with pytest.raises(UserError, match=r"participants\.tsv: ") as caught:
        dataset.load(folder, cache_dir=cache_dir, num_slices=8, slice_spacing_mm=4, label_column="group")
    assert "\n" not in str(caught.value)


BAD_DESCRIPTIONS = {
    "cut": b'{"Name": "Some br',
    "a list": b"[1, 2]",
    "no name": b"{}",
    "authors that are a number": b'{"Name": "x", "Authors": 5}',
    "a licence that is a number": b'{"Name": "x", "License": 5}',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("how", BAD_DESCRIPTIONS)
def test_bad_descriptions(tmp_path, cache_dir, how):
    folder = write_bids(tmp_path / "bids")
    (folder / "dataset_description.json").write_bytes(BAD_DESCRIPTIONS[how])
    with pytest.raises(UserError, match=r"dataset_description\.json: "):
        dataset.load(folder, cache_dir=cache_dir, num_slices=8, slice_spacing_mm=4)


def test_two_files_for_one_slice(tmp_path, cache_dir):
    folder = write_oasis(tmp_path / "oasis") / "keras_png_slices_train"
    (folder / "case_002_slice_1.png").write_bytes((folder / "case_002_slice_1.nii.png").read_bytes())
    with pytest.raises(UserError, match="both are slice 1 of case_002; remove one"):
        dataset.load(folder.parent, cache_dir=cache_dir)


def test_two_files_for_one_volume(tmp_path, cache_dir):
    folder = write_bids(tmp_path / "bids")
    packed = folder / "sub-03/anat/sub-03_T1w.nii.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.raises(UserError, match="sub-03_T1w.nii.gz: both are one volume; remove one"):
        dataset.load(folder, cache_dir=cache_dir, num_slices=8, slice_spacing_mm=4)


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


def test_a_folder_that_links_to_itself(tmp_path, cache_dir):
    folder = tmp_path / "data"
    for person in range(8):
        path = folder / f"p{person}_0.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.new("L", (32, 32)).save(path)
    (folder / "again").symlink_to(folder)
    data = dataset.load(folder, subject_regex=r"(?P<subject>p\d)_(?P<slice>\d)", cache_dir=cache_dir)
    assert len(data.slices) == 8
