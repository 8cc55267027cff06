"""Labels from tables of participants as people write them: participants.tsv, and sessions.tsv of a person's visits.

Columns may be separated by tabs, commas or semicolons, stand in any case, and begin with a byte-order mark; ids may
lack `sub-` or leading zeros; missing values may be written in any of the usual ways. What was assumed is a notice.
"""

import collections
import csv
import unicodedata

from system.console import UserError, in_a_line

TABLES = ("participants.tsv", "participants.csv")
MISSING = {"", "n/a", "n.a.", "#n/a", "na", "nan", "none", "null", "nil", "-", "-9", ".", "?", "missing", "unknown"}
ID_COLUMNS = ("participant_id", "subject_id", "subject", "participant", "id", "ptid")
LABEL_COLUMNS = (
    "diagnosis",
    "group",
    "dx",
    "dx_group",
    "diagnostic_group",
    "research_group",
    "research group",
    "class",
)


def read(path):
    """Rows of a table as dictionaries, its columns in lower case, blanks trimmed, and its separator."""
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))  # as labels in paths are
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        header = lines[0].lower() if lines else ""

        def known(separator):
            cells = {cell.strip(' "') for cell in header.split(separator)}
            return len(cells & {*ID_COLUMNS, *LABEL_COLUMNS, "session_id"}), header.count(separator)

        separator = max("\t,;", key=known)
        rows = list(csv.reader(lines, delimiter=separator, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table of UTF-8 text ({in_a_line(error)}); mend or remove it") from error
    columns = [cell.strip().lower() for cell in rows[0]] if rows else []
    return columns, [dict(zip(columns, [cell.strip() for cell in row], strict=False)) for row in rows[1:]], separator


def _key(name):
    """An id without `sub-` or `ses-`, leading zeros and case, its accents as in a table."""
    return unicodedata.normalize("NFC", name).lower().removeprefix("sub-").removeprefix("ses-").lstrip("0") or "0"


def labels_of(data_dir, sources, column=None):
    """The label of each source from the data folder's tables, "" where it is not known, and notices.

    Args:
        data_dir: The data folder.
        sources: A list of `layouts.Source`.
        column: Name of the column, in any case; None takes the first of the usual names, where there is one.

    Raises:
        UserError: If the column, or a table, is asked for and not there, or nobody has a label in it.
    """
    tables = sorted(path for path in data_dir.iterdir() if path.name.lower() in TABLES and path.is_file())
    visits = {data_dir / source.subject_id / f"{source.subject_id}_sessions.tsv" for source in sources}
    visits = sorted(path for path in visits if path.is_file())
    if column and not tables and not visits:
        raise UserError(f"--label-column {column}: no participants.tsv in {data_dir} to take labels from")
    wanted = [unicodedata.normalize("NFC", column).lower()] if column else LABEL_COLUMNS
    notices, rows, used, seen = [], [], {}, {}
    for path in [*tables, *visits]:
        columns, cells, separator = read(path)
        seen |= dict.fromkeys(columns)
        name = next((name for name in wanted if name in columns), None)
        if name:
            used[path] = name
            rows += _rows(path, columns, cells, name, path.parent.name if path in visits else None)
            if separator != "\t":
                notices.append(f"{path.name} is not separated by tabs but by {separator!r}, and read so")
        elif not column and path in tables:
            listed = ", ".join(columns) or "nothing"
            notices.append(f"{path.name} has none of the columns {', '.join(LABEL_COLUMNS[:3])}; it has {listed}")
    if not used:
        if column:
            raise UserError(f"{[*tables, *visits][0]}: no column {column!r}; it has {', '.join(seen) or 'none'}")
        return [""] * len(sources), notices
    of_visit = {(_key(person), _key(visit)): label for person, visit, label in rows if visit}
    of_person = collections.defaultdict(lambda: collections.defaultdict(list))  # by key, then by id as it is written
    for person, visit, label in rows:
        if not visit:
            of_person[_key(person)][person].append(label)
    twice = sorted(name for known in of_person.values() for name, labels in known.items() if len(set(labels)) > 1)
    if twice:
        notices.append(
            f"{len(twice)} people have several labels in the table, and the first is taken: {twice[0]} is one"
        )
    names = list(used.values())
    if of_visit and of_person and len(set(names)) > 1:
        of_person = {}
        notices.append(f"labels are taken from {names[-1]} of the visits' tables alone, not from {names[0]}")
    labels = [_label(source, of_person, of_visit) for source in sources]
    if not any(labels):
        people = len({source.subject_id for source in sources})
        example = rows[0][0] if rows else ""
        message = f"{next(iter(used))}: 0 of {people} people have a label in it; its ids are like {example!r}"
        if column:
            raise UserError(f"--label-column {column}: {message}")
        notices.append(message)
    folded = collections.defaultdict(set)
    for label in labels:
        folded[label.lower()].add(label)
    for spellings in folded.values():
        if len(spellings) > 1:
            notices.append(f"labels that differ in case alone are taken for different: {', '.join(sorted(spellings))}")
    return labels, notices


def _rows(path, columns, cells, name, person):
    """(person, visit, label) of each row of a table: `visit` is empty where it is of a person, as a whole.

    Args:
        name: The column of labels.
        person: Whose visits the table lists; None for a table of people.
    """
    ids = "session_id" if person else next((one for one in ID_COLUMNS if one in columns), ID_COLUMNS[0])
    if ids not in columns:
        raise UserError(f"{path}: no column {ids!r}; it has {', '.join(columns)}")
    for row in cells:
        label = row.get(name, "")
        if row.get(ids):
            visit = row[ids] if person else row.get("session_id", "")
            yield person or row[ids], visit, "" if label.lower() in MISSING else label


def _label(source, of_person, of_visit):
    visit = _key(source.subject_id), _key(source.session)
    if source.session and visit in of_visit:
        return of_visit[visit]
    rows = of_person.get(_key(source.subject_id), {})
    for name, labels in rows.items():
        if name.removeprefix("sub-") == source.subject_id.removeprefix("sub-"):
            return labels[0]
    return next(iter(rows.values()))[0] if len(rows) == 1 else ""  # ids that agree but for zeros, if only one does
