"""How data folders are laid out: which files are slices or volumes, and whose they are.

A layout is a regular expression over paths, with the groups `subject`, `session`, `slice`, `label` and `split`. Those
that are known stand in `LAYOUTS`, and a new one goes there; `--subject-regex` gives one for all else. What lies in the
folder and is not used is said in a notice. Everything a user can get wrong raises `UserError` with one line that names
the file and what to do. Nothing heavy is imported.
"""

import collections
import dataclasses
import os
import re
import unicodedata
from pathlib import Path

from reading.participants import labels_of
from system.console import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NOT_READ = (".bmp", ".gif", ".jp2", ".webp", ".mnc", ".nrrd", ".mha", ".mhd", ".img.gz", ".dcm", ".ima", ".zip", ".tar")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".img", ".mgz", ".mgh")
# Folders that are a data set's own split, by the names that people give them.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "ts", "holdout"), "test"),
}
SPLIT_FOLDER = rf"(?i:(?:images?|data)?[_-]?(?:{'|'.join(SPLIT_NAMES)})[_-]?(?:set|data|images?)?)"
SPLIT = f"(?P<split>{SPLIT_FOLDER})"
CLASSES = "(?P<label>(?i:ADNI_)?(?i:AD|NC|CN|MCI|EMCI|LMCI|SMC|pMCI|sMCI|HC|FTD))"  # of folders without a split
PICTURE, NIFTI = r"\.(?i:jpe?g|png)", r"\.(?i:nii(?:\.gz)?)"
MOST_CLASSES = 20
# Folders that no person made: of thumbnails, and of what file servers and systems leave. Hidden ones are beside these.
NOT_DATA = re.compile(r"(?i)@.*|_*thumb(?:nail)?s?|__macosx|[#$]recycle.*|#snapshot|lost\+found")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a layout is called, what it looks like, its expressions, and what of it is known and not wanted."""

    looks: str
    patterns: tuple[str, ...]
    aside: str = ""
    aside_is: str = ""


LAYOUTS = {
    "oasis": Layout(
        "keras_png_slices_{train,validate,test}/case_NNN_slice_K.nii.png",
        (
            r"(?:keras_png_slices_data/)?keras_png_slices_(?P<split>train|validate|test)/"
            r"(?P<subject>case_\d+)_slice_(?P<slice>\d+)(?:\.nii)?\.png",
        ),
        aside=r"(?:.*/)?keras_png_slices_seg_\w+/.*",
        aside_is="label maps",
    ),
    "oasis-kaggle": Layout(
        "[{train,val,test}/]CLASS/OAS1_NNNN_MRn_mpr-n_NNN.jpg",
        tuple(
            rf"{folder}(?P<label>[^/]+)/(?P<subject>OAS1_\d+)_(?P<session>MR\d+_mpr-\d+)_(?P<slice>\d+){PICTURE}"
            for folder in (f"{SPLIT}/", "(?:[^/]+/)?")
        ),
    ),
    "adni": Layout(
        "{train,val,test}/CLASS/[PERSON/]ID_SLICE.jpeg or {AD,CN,MCI,...}/[PERSON/]ID_SLICE.jpeg",
        tuple(
            rf"(?:AD_NC/)?{folders}/{person}_(?P<slice>\d+){PICTURE}"
            for folders in (rf"{SPLIT}/(?P<label>[^/]+)", CLASSES)
            for person in (r"(?P<subject>[^/]+)", r"(?P<subject>[^/]+)/(?P<session>[^/]+)")
        ),
    ),
    "bids": Layout(
        "sub-*/[ses-*/]anat/*_T1w.nii[.gz]",
        (
            rf"(?P<subject>sub-[^/]+)/(?:(?P<session>ses-[^/]+)/)?(?:.*/)?anat/(?![^/]*(?:_space-|_label-|mask))[^/]*_T1w{NIFTI}",
        ),
    ),
    "ixi": Layout("IXINNN-SITE-NNNN-T1.nii.gz", (rf"(?:[^/]+/)?(?P<subject>IXI\d+)-[^/]+-T1{NIFTI}",)),
    "oasis1": Layout(
        "[discN/]OAS1_NNNN_MRn/PROCESSED/MPRAGE/T88_111/*_masked_gfc.img",
        (r"(?:disc\d+/)?(?P<subject>OAS1_\d+)_(?P<session>MR\d+)/PROCESSED/MPRAGE/T88_111/[^/]*_masked_gfc\.(?i:img)",),
        aside=r"(?:disc\d+/)?OAS1_\d+_MR\d+/.*",
        aside_is="raw scans, and volumes without brain mask",
    ),
    "adni-archive": Layout(
        "[ADNI/]NNN_S_NNNN/SEQUENCE/DATE/IMAGE/*.nii",
        (rf"(?:[^/]+/)?(?P<subject>\d{{3}}_S_\d{{4,5}})/[^/]+/(?P<session>\d{{4}}-\d\d-\d\d[^/]*/[^/]+)/[^/]+{NIFTI}",),
    ),
    "freesurfer": Layout(
        "SUBJECT/mri/T1.mgz",
        (r"(?!fsaverage)(?P<subject>[^/]+?)(?:\.long\.(?P<session>[^/]+))?/mri/T1\.(?i:mgz)",),
        aside=r"[^/]+/mri/.*|fsaverage\w*/.*",
        aside_is="other volumes of FreeSurfer's",
    ),
    # Recognised where the folder holds nothing else: see `_refuse_all_but_flat`.
    "flat": Layout("NAME.nii.gz, each file another person", (r"(?P<subject>[^/]+?)\.(?i:nii|nii\.gz|img|mgz|mgh)",)),
}
NAMES = (*LAYOUTS, "regex")
# What names a person in a path, for errors to suggest: in names of slices, in folders, in any name.
OF_SLICES = (r"(?P<subject>[^/]+)_(?P<slice>\d+)\.\w+$", r"(?P<subject>[^/]+)/[^/]*?(?P<slice>\d+)\.\w+$")
OF_ANY = (r"^(?P<subject>[^/]+)/", r"(?P<subject>[^/]+)/[^/]+$", r"(?P<subject>[^/.]+)[^/]*$")
# Beginnings of file names that may name a person: up to the first number, the second, the third; or word.
BEGINNINGS = [
    f"^(?P<subject>{first}{more * number})"
    for first, more in ((r"\D*\d+", r"\D+\d+"), (r"[^\W_]+", r"[\W_]+[^\W_]+"))
    for number in range(3)
]


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that holds one slice (slice_index is its number) or a volume (slice_index is None)."""

    path: Path
    subject_id: str
    session: str = ""
    slice_index: int | None = None
    label: str = ""
    split: str = ""


# ----------------------------------------------------------------------------------------------------------------
# What lies in a folder
# ----------------------------------------------------------------------------------------------------------------


def kind_of(name):
    """ "image", "volume" or nothing, by the ending of a file's name."""
    name = name.lower()
    return "image" if name.endswith(IMAGE_SUFFIXES) else "volume" if name.endswith(VOLUME_SUFFIXES) else ""


def stem_of(name):
    """A name or path without the ending of an image or a volume."""
    endings = sorted((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES), key=len, reverse=True)
    return name[: -len(next(ending for ending in endings if name.lower().endswith(ending)))]


def walk(folder):
    """Paths of all files below, relative to the folder, in order; links are followed, hidden and `NOT_DATA` are not."""

    def refuse(error):
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    found, above = [], {str(folder): set()}
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in above[place]:  # a link to a folder that holds it
            folders[:] = []
            continue
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or NOT_DATA.fullmatch(name)))
        above |= {os.path.join(place, name): above[place] | {real} for name in folders}
        start = os.path.relpath(place, folder)
        found += [name if start == "." else f"{start}/{name}" for name in sorted(names) if not name.startswith(".")]
        # An image that is a folder, or a link to nowhere, is named when it is opened.
        found += [
            f"{start}/{name}".removeprefix("./") for name in folders if kind_of(name) and not _holds_any(place, name)
        ]
    return sorted(name.replace(os.sep, "/") for name in found)


def _holds_any(place, name):
    return any(os.scandir(os.path.join(place, name)))


def _natural(text):
    """A key by which 2 comes before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _first(names):
    """How many, and the first of them."""
    return f"{len(names)} ({names[0]} the first)"


def _split_of(folder):
    """train, validation or test, where a folder's name says so; else nothing."""
    if not re.fullmatch(SPLIT_FOLDER, folder):
        return ""
    return next(SPLIT_NAMES[name] for name in sorted(SPLIT_NAMES, key=len, reverse=True) if name in folder.lower())


# ----------------------------------------------------------------------------------------------------------------
# Whose they are
# ----------------------------------------------------------------------------------------------------------------


def _pattern(subject_regex):
    """The compiled expression of --subject-regex; an only group without a name is the person."""
    try:
        pattern = re.compile(subject_regex)
    except re.error as error:
        raise UserError(f"--subject-regex '{subject_regex}' is not a regular expression: {error}") from error
    if not pattern.groups or (pattern.groupindex and "subject" not in pattern.groupindex):
        raise UserError(f"--subject-regex '{subject_regex}': give the person's part a group, (?P<subject>...)")
    known = ("subject", "session", "slice", "label", "split")
    unknown = [name for name in pattern.groupindex if name not in known]
    if unknown:
        raise UserError(f"--subject-regex '{subject_regex}': group {unknown[0]!r} is none of {', '.join(known)}")
    return pattern


def _match(layout, names):
    """Those of the names that a known layout's first fitting expression takes, with their groups."""
    found = {}
    for pattern in LAYOUTS[layout].patterns:
        compiled = re.compile(pattern, re.DOTALL)  # a name may hold a newline
        found |= {name: match for name in names if name not in found and (match := compiled.fullmatch(name))}
    return {name: found[name].groupdict() for name in names if name in found}


def _sources(data_dir, matched):
    """Sources of matched names; slices without a number are counted in natural order."""
    sources, numbers = [], collections.Counter()
    for name in sorted(matched, key=_natural):
        groups = {key: value or "" for key, value in matched[name].items()}
        subject, session, index = groups["subject"], groups.get("session", ""), groups.get("slice", "")
        split = groups.get("split", "")
        if split and not _split_of(split):
            raise UserError(f"{data_dir / name}: split {split!r} is none of {', '.join(SPLIT_NAMES)}")
        number = None
        if kind_of(name) == "image":
            if index and not index.isdecimal():
                raise UserError(f"{data_dir / name}: read the slice number {index!r}, which is not a number")
            series = subject, session, name.rpartition("/")[0]
            number = int(index) if index else numbers[series]
            numbers[series] += 1
        split = _split_of(split)
        label = unicodedata.normalize("NFC", groups.get("label", ""))  # macOS takes accents apart in names of files
        sources.append(Source(data_dir / name, subject, session, number, label, split))
    if not any(source.split == "validation" for source in sources):  # which is then cut from those for training
        sources = [dataclasses.replace(one, split="" if one.split == "train" else one.split) for one in sources]
    return sorted(sources, key=lambda source: source.path)


def _suggestion(names):
    """--subject-regex for files of no known layout, to be pasted: matches all of them, and tells people apart."""
    patterns = (*OF_SLICES, *OF_ANY) if all(kind_of(name) == "image" for name in names) else OF_ANY
    matches = {pattern: [re.search(pattern, name) for name in names] for pattern in patterns}
    fitting = {pattern: len({match["subject"] for match in found}) for pattern, found in matches.items() if all(found)}
    best = next((pattern for pattern, people in fitting.items() if people > 1), list(fitting)[-1])
    return f"--subject-regex '{best}'"


def _by_regex(data_dir, names, subject_regex):
    """Sources by --subject-regex, and notices."""
    pattern = _pattern(subject_regex)
    matched, notices = {}, []
    for name in names:
        found = pattern.search(name)
        if found and found["subject" if pattern.groupindex else 1]:
            matched[name] = found.groupdict() if pattern.groupindex else {"subject": found[1]}
    others = [name for name in names if name not in matched]
    if not matched:
        raise UserError(
            f"--subject-regex '{subject_regex}' matches none of {len(names)} files, such as {names[0]}; "
            f"{_suggestion(names)} does"
        )
    for group in pattern.groupindex:
        if not any(groups[group] for groups in matched.values()):
            raise UserError(
                f"--subject-regex '{subject_regex}': its group {group!r} matches in none of {len(matched)} files"
            )
    kinds = collections.Counter(map(kind_of, matched))
    if len(kinds) > 1:
        raise UserError(
            f"--subject-regex '{subject_regex}' matches {kinds['image']} images and {kinds['volume']} volumes; "
            "let it end in the suffix of those that are meant"
        )
    if others:
        notices.append(f"files that --subject-regex does not match are left out: {_first(others)}")
    if "split" not in pattern.groupindex:
        of = {name: [split for part in name.split("/")[:-1] if (split := _split_of(part))] for name in matched}
        known = {splits[0] for splits in of.values() if splits}
        if len(known) > 1:
            lost = next((name for name in matched if not of[name]), None)
            if lost:
                raise UserError(
                    f"{data_dir}: folders are named as a split into {', '.join(sorted(known))}, and {lost} is in none; "
                    "say which is which by a group 'split' in --subject-regex, or move it away"
                )
            for name, splits in of.items():
                matched[name]["split"] = splits[0]
            notices.append("the folders' own split into train, validation and test is kept, as their names say it")
    return _sources(data_dir, matched), notices


def _refuse_people_for_classes(data_dir, sources):
    """Raises UserError where a folder named as a class seems to be a person."""
    labels = collections.defaultdict(set)
    for source in sources:
        labels[source.subject_id].add(source.label)
    number = len({source.label for source in sources})
    torn = sum(len(of_one) > 1 for of_one in labels.values())
    if number > MOST_CLASSES or torn > len(labels) / 2 or number > max(2, len(labels) / 2):
        raise UserError(
            f"{data_dir}: {number} folders would be classes and {len(labels)} names people, {torn} of them in several "
            "classes; if the folders are people, say so by --subject-regex, like '(?P<subject>[^/]+)/[^/]+$'"
        )


def _unusual(sources, everything):
    """Notices of several volumes in one session, and of files of kinds that are not read."""
    notices, scans = [], collections.defaultdict(list)
    for source in sources:
        if source.slice_index is None:
            scans[source.subject_id, source.session].append(source.path.name)
    several = [names for names in scans.values() if len(names) > 1]
    if several:
        notices.append(
            f"{len(several)} sessions have several volumes, and all are used ({several[0][0]} and {several[0][1]} the "
            "first): name those that are meant by --subject-regex"
        )
    return notices + not_read(everything)


def not_read(names):
    """A notice of files of kinds that are known and not read, in a list; none where there are none."""
    kinds = collections.Counter(end for name in names for end in NOT_READ if name.lower().endswith(end))
    listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return [f"files of kinds that are not read: {listed}"] * bool(kinds)


def _refuse_half_of_a_split(data_dir, sources):
    """Raises UserError where the folder is one of a data set's train, validation and test."""
    here = data_dir.resolve()
    if _split_of(here.name) and not any(source.split for source in sources):
        beside = sorted(path.name for path in here.parent.iterdir() if _split_of(path.name) and path.is_dir())
        if len(beside) > 1:
            raise UserError(
                f"{data_dir}: found {len(sources)} files; did you mean --data-dir {here.parent}, "
                f"with {', '.join(beside)}?"
            )


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
            stem = stem_of(str(source.path))
            if seen.setdefault(stem, source.path) != source.path:
                raise UserError(f"{seen[stem]} and {source.path}: both are one volume; remove one")
    return sources


# ----------------------------------------------------------------------------------------------------------------
# Finding
# ----------------------------------------------------------------------------------------------------------------


def check(data_dir, layout=None, subject_regex=None, label_column=None):
    """Raises UserError where these options do not go together, or the folder is not there; arguments as for `find`."""
    if data_dir is None:
        for flag, value in (("--layout", layout), ("--subject-regex", subject_regex), ("--label-column", label_column)):
            if value:
                raise UserError(f"{flag} {value}: says how to read --data-dir, which is not given")
        return
    if not Path(data_dir).is_dir():
        raise UserError(f"{data_dir}: no such folder; give --data-dir the folder that holds the images")
    if layout == "regex" and not subject_regex:
        raise UserError("--layout regex needs --subject-regex, to read from each path whose slice it is")
    if subject_regex:
        if layout not in (None, "regex"):
            raise UserError(f"--subject-regex is for --layout regex, not {layout}")
        _pattern(subject_regex)
    if label_column and layout in ("oasis", "adni", "oasis-kaggle"):
        raise UserError(f"--label-column {label_column}: for tables of participants, not for --layout {layout}")


def find(data_dir, layout=None, subject_regex=None, label_column=None):
    """Recognises the layout of a folder and lists its sources.

    Args:
        data_dir: The folder.
        layout: One of `NAMES`; None recognises it.
        subject_regex: Searched in each path relative to the folder; gives layout "regex".
        label_column: Column of the table of participants that holds the label.

    Returns:
        The layout's name, a list of `Source` ordered by path, and notices about what is not used.

    Raises:
        UserError: If the folder does not exist or holds nothing that the layout names.
    """
    check(data_dir, layout, subject_regex, label_column)
    data_dir = Path(data_dir)
    everything = walk(data_dir)
    names = [name for name in everything if kind_of(name)]
    if not names:
        _refuse_no_images(data_dir, everything, [] if subject_regex else [layout] if layout else LAYOUTS)
    if subject_regex:
        layout, (sources, notices) = "regex", _by_regex(data_dir, names, subject_regex)
    else:
        layout, sources, notices = _by_layout(data_dir, names, layout)
    _refuse_half_of_a_split(data_dir, sources)
    if layout == "adni":
        _refuse_people_for_classes(data_dir, sources)
    notices += _unusual(sources, everything)
    if not any(source.label for source in sources):
        labels, more = labels_of(data_dir, sources, label_column)
        sources = [dataclasses.replace(source, label=label) for source, label in zip(sources, labels, strict=True)]
        notices += more
    elif label_column:
        raise UserError(f"--label-column {label_column}: the labels of {data_dir} are in its paths ({layout})")
    return layout, _checked(sources), notices


def _by_layout(data_dir, names, layout):
    """The layout, which is recognised where it is None, its sources, and notices."""
    tried = [layout] if layout else [name for name in LAYOUTS if name != "flat"]
    known = ((name, matched) for name in tried if (matched := _match(name, names)))
    found, matched = next(known, (None, None))
    notices = []
    if not found:
        _refuse_all_but_flat(data_dir, names, tried)
        found, matched = "flat", _match("flat", names)
        notices.append(
            f"each of {len(names)} files is taken for another person ({names[0]} the first); if one person has "
            "several, name the person by --subject-regex"
        )
    others = [name for name in names if name not in matched]
    aside = [name for name in others if re.fullmatch(LAYOUTS[found].aside or "(?!)", name, re.DOTALL)]
    unknown = [name for name in others if name not in set(aside)]
    if aside:
        notices.append(f"{LAYOUTS[found].aside_is} are left aside: {_first(aside)}")
    if unknown:
        notices.append(f"images or volumes that are not like {LAYOUTS[found].looks} are left out: {_first(unknown)}")
    return found, _sources(data_dir, matched), notices


def _refuse_all_but_flat(data_dir, names, tried):
    """Raises UserError for files of no known layout, if they are not volumes in one folder, each surely a person."""
    kinds = collections.Counter(map(kind_of, names))
    found = f"{data_dir}: found " + " and ".join(f"{number} {kind}s" for kind, number in sorted(kinds.items()))
    if meant := _meant(data_dir, names, tried):
        raise UserError(f"{found}; did you mean --data-dir {meant[0]} ({meant[1]})?")
    if len(tried) == 1 or kinds["image"] or any("/" in name for name in names):
        raise UserError(
            f"{found}, such as {names[0]}, in no known layout ({', '.join(tried)}); say whose they are, for example by "
            + _suggestion(names)
        )
    for pattern in BEGINNINGS:
        files = collections.defaultdict(list)
        for name in names:
            files[match["subject"] if (match := re.search(pattern, name)) else ""].append(name)
        if "" in files or 1 == len(files) < len(names):
            continue  # some name has no such beginning, or all have one and the same
        of_one = max(files.values(), key=len)
        if len(of_one) == 1:
            return
        raise UserError(
            f"{found}, of which several may be of one person, such as {of_one[0]} and {of_one[1]}; "
            f"give --subject-regex '{pattern}' if they are, or --layout flat if each file is another person"
        )


def _meant(data_dir, names, tried):
    """The folder above or below in which these files would have one of the layouts, and which; else None."""
    above = data_dir.resolve()
    for up in (1, 2):
        prefix = "/".join(above.parts[-up:])
        for layout in tried:
            if _match(layout, [f"{prefix}/{name}" for name in names]):
                return above.parents[up - 1], layout
    for down in (1, 2, 3):
        below = [name.split("/", down) for name in names if name.count("/") >= down]
        for layout in tried:
            matched = _match(layout, sorted({name for *_, name in below}))
            for *folders, name in below:
                if name in matched:
                    return data_dir.joinpath(*folders), layout
    return None


def _refuse_no_images(data_dir, everything, wanted):
    """Raises UserError for a folder without any image or volume."""
    scan = next((name for name in everything if _is_dicom(data_dir / name)), None)
    if scan:
        raise UserError(
            f"{data_dir}: holds DICOM files ({scan}); convert them first, for example: "
            f"dcm2niix -z y -o FOLDER {data_dir}"
        )
    looked_for = "; ".join(f"{LAYOUTS[name].looks} ({name})" for name in wanted)
    more = f"{looked_for}; for other folders give --subject-regex" if wanted else "PNG, JPEG, TIFF, NIfTI, Analyze, MGH"
    raise UserError(f"{data_dir}: no images found; looked for {more}")


def _is_dicom(path):
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
