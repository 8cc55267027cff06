"""How data folders are laid out: which files are slices or volumes, and whose they are.

Four layouts are known: OASIS as PNG, ADNI as JPEG, BIDS volumes, and any folder of images whose person a regular
expression can read from the path. A new one is a function `find_NAME` from the data folder to a list of `Source`, and a
line in `NAMES` and in `find`. Everything a user can get wrong raises `UserError` with one line that names the file and
what to do. Nothing heavy is imported.
"""

import collections
import csv
import dataclasses
import re
from pathlib import Path

from files import UserError, in_a_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

# Each layout with what is looked for.
NAMES = {
    "oasis": "keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png",
    "adni": "AD_NC/{train,test}/{AD,NC}/ID_SLICE.jpeg",
    "bids": "sub-*/[ses-*/]anat/*_T1w.nii[.gz]",
    "images": "PNG, JPEG and TIFF files",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that holds one slice (slice_index is its number) or a volume (slice_index is None)."""

    path: Path
    subject_id: str
    session: str = ""
    slice_index: int | None = None
    label: str = ""
    split: str = ""


def _files(folder, pattern="*"):
    """Paths below a folder by a pattern, in the order of their names; nothing that is hidden, or lies in what is."""
    found = folder.glob(pattern)
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _images(folder, pattern="*"):
    return [path for path in _files(folder, pattern) if path.suffix.lower() in IMAGE_SUFFIXES]


def _match(path, pattern, example):
    found = re.fullmatch(pattern, path.name, re.DOTALL)  # a name may hold a newline
    if not found:
        raise UserError(f"{path}: the name is not like {example}; rename or remove the file, or give another --layout")
    return found


def find_oasis(data_dir):
    """OASIS as PNG: keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png; label maps are left aside."""
    sources = []
    for folder_name, split in (("train", "train"), ("validate", "validation"), ("test", "test")):
        for base in (data_dir, data_dir / "keras_png_slices_data"):
            for path in _images(base / f"keras_png_slices_{folder_name}"):
                found = _match(path, r"(case_\d+)_slice_(\d+)(\.nii)?\.png", "case_001_slice_0.nii.png")
                sources.append(Source(path, found[1], slice_index=int(found[2]), split=split))
    return sources


def find_adni(data_dir):
    """ADNI as JPEG: AD_NC/{train,test}/{AD,NC}/<id>_<slice>.jpeg; the validation set is cut from train."""
    base = data_dir / "AD_NC" if (data_dir / "AD_NC").is_dir() else data_dir
    sources = []
    for folder, split in (("train", ""), ("test", "test")):
        for label in ("AD", "NC"):
            for path in _images(base / folder / label):
                found = _match(path, r"(.+)_(\d+)\.(jpe?g|png)", "218391_78.jpeg")
                sources.append(Source(path, found[1], slice_index=int(found[2]), label=label, split=split))
    return sources


def find_bids(data_dir, label_column=None):
    """BIDS: sub-*/[ses-*/]anat/*_T1w.nii[.gz], with labels from a column of participants.tsv where there is one."""
    paths = [p for p in _files(data_dir, "sub-*/**/anat/*_T1w.nii*") if p.name.endswith((".nii", ".nii.gz"))]
    labels = _participant_labels(data_dir / "participants.tsv", label_column) if paths else {}
    sources = []
    for path in paths:
        folders = path.relative_to(data_dir).parts
        session = next((f for f in folders if f.startswith("ses-")), "")
        sources.append(Source(path, folders[0], session, label=labels.get(folders[0], "")))
    return sources


def _participant_labels(path, column):
    if not path.is_file():
        if column:
            raise UserError(f"{path}: not found, so there is no column {column!r} to take labels from")
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t")
            columns, rows = reader.fieldnames or [], list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table of UTF-8 text ({in_a_line(error)}); mend or remove it") from error
    column = column or next((c for c in ("diagnosis", "group") if c in columns), None)
    if column is None:
        return {}
    for needed in ("participant_id", column):
        if needed not in columns:
            raise UserError(f"{path}: no column {needed!r}; it has {', '.join(columns) or 'none'}")
    labels = {}
    for row in rows:
        if row[column] not in (None, "", "n/a") and row["participant_id"]:
            labels["sub-" + row["participant_id"].removeprefix("sub-")] = row[column]
    return labels


def _pattern(subject_regex):
    """The compiled expression, and which of its groups is the person."""
    try:
        pattern = re.compile(subject_regex)
    except re.error as error:
        raise UserError(f"--subject-regex {subject_regex!r} is not a regular expression: {error}") from error
    if not pattern.groups or (pattern.groupindex and "subject" not in pattern.groupindex):
        raise UserError(f"--subject-regex {subject_regex!r}: give the person's part a group, like (?P<subject>P\\d+)")
    return pattern, "subject" if pattern.groupindex else 1


def find_images(data_dir, subject_regex):
    """Any folder of images: the regular expression is searched in each path relative to the folder.

    Its group `subject` (or its only group, if none has a name) is the person; groups `session`, `slice` and `label` are
    optional. Without `slice`, a person's slices are numbered in the order of their names.
    """
    pattern, subject_group = _pattern(subject_regex)
    paths = _images(data_dir, "**/*")
    sources, unmatched = [], []
    numbers = collections.Counter()
    for path in paths:
        found = pattern.search(path.relative_to(data_dir).as_posix())
        if not found or not found[subject_group]:
            unmatched.append(path)
            continue
        groups = found.groupdict()
        subject, session = found[subject_group], groups.get("session") or ""
        index = groups.get("slice")
        if index is not None and not index.isdecimal():
            raise UserError(f"{path}: --subject-regex read the slice number {index!r}, which is not a number")
        number = int(index) if index is not None else numbers[subject, session]
        numbers[subject, session] += 1
        sources.append(Source(path, subject, session, number, groups.get("label") or ""))
    if unmatched:
        raise UserError(
            f"--subject-regex {subject_regex!r} matches {len(sources)} of {len(paths)} images, not {unmatched[0]}; "
            "widen it, or move the other images away"
        )
    return sources


def _checked(sources):
    """The sources, if each is one slice (or volume) of its own and has a name that can be written down."""
    seen = {}
    for source in sources:
        try:
            str(source.path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{str(source.path)!r}: the name is not UTF-8; rename it") from error
        identity = (source.subject_id, source.session, source.slice_index, source.label, source.split)
        other = seen.setdefault(identity, source.path)
        if source.slice_index is not None and other != source.path:
            raise UserError(
                f"{other} and {source.path}: both are slice {source.slice_index} of {source.subject_id}; remove one, "
                "or tell them apart by --subject-regex with a group 'session'"
            )
        if source.slice_index is None:
            name = source.path.parent / source.path.name.partition(".")[0]
            if seen.setdefault(name, source.path) != source.path:
                raise UserError(f"{seen[name]} and {source.path}: both are one volume; remove one")
    return sources


def check(data_dir, layout=None, subject_regex=None, label_column=None):
    """Raises UserError where these options do not go together, or the folder is not there; arguments as for `find`."""
    if data_dir is None:
        for flag, value in (("--layout", layout), ("--subject-regex", subject_regex), ("--label-column", label_column)):
            if value:
                raise UserError(f"{flag} {value}: says how to read --data-dir, which is not given")
        return
    if not Path(data_dir).is_dir():
        raise UserError(f"{data_dir}: no such folder; give --data-dir the folder that holds the images")
    if layout == "images" and not subject_regex:
        raise UserError("--layout images needs --subject-regex, to read from each path whose slice it is")
    if subject_regex:
        if layout not in (None, "images"):
            raise UserError(f"--subject-regex is for --layout images, not {layout}")
        _pattern(subject_regex)
    if label_column and (subject_regex or layout not in (None, "bids")):
        raise UserError(
            f"--label-column {label_column}: for BIDS participants.tsv, not for --layout {layout or 'images'}"
        )


def find(data_dir, layout=None, subject_regex=None, label_column=None):
    """Recognises the layout of a folder and lists its sources.

    Args:
        data_dir: The folder.
        layout: One of `NAMES`; None recognises it.
        subject_regex: For "images", and implies it.
        label_column: Column of participants.tsv that holds the label, for "bids".

    Returns:
        The layout's name and a list of `Source`, ordered by path.

    Raises:
        UserError: If the folder does not exist or holds nothing that the layout names.
    """
    check(data_dir, layout, subject_regex, label_column)
    data_dir = Path(data_dir)
    finders = {
        "oasis": lambda: find_oasis(data_dir),
        "adni": lambda: find_adni(data_dir),
        "bids": lambda: find_bids(data_dir, label_column),
        "images": lambda: find_images(data_dir, subject_regex) if subject_regex else [],
    }
    layout = "images" if subject_regex else layout
    for name in [layout] if layout else finders:
        sources = finders[name]()
        if sources:
            if label_column and name != "bids":
                raise UserError(
                    f"--label-column {label_column}: for BIDS participants.tsv, and {data_dir} is laid out as {name}"
                )
            return name, _checked(sorted(sources, key=lambda source: source.path))
    wanted = NAMES.get(layout) or (
        ", ".join(f"{what} ({name})" for name, what in NAMES.items() if name != "images")
        + "; for other folders of images give --subject-regex"
    )
    raise UserError(f"{data_dir}: no images found; looked for {wanted}")
