"""Labels from tables of participants as people write them: participants.tsv, and sessions.tsv of a person's visits.

Columns may be separated by tabs, commas or semicolons, stand in any case, and begin with a byte-order mark; ids may
lack `sub-` or leading zeros; missing values may be written in any of the usual ways. What was assumed is a notice.
"""

import collections
import csv

from system.console import UserError, in_a_line

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
        text = path.read_text(encoding="utf-8-sig")
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
    """An id without `sub-` or `ses-`, leading zeros and case."""
    return name.lower().removeprefix("sub-").removeprefix("ses-").lstrip("0") or "0"


def labels_of(data_dir, sources, column=None):
    """The label of each source from the data folder's tables, "" where it is not known, and notices.

    Args:
        data_dir: The data folder.
        sources: A list of `layouts.Source`.
        column: Name of the column, in any case; None takes the first of the usual names, where there is one.

    Raises:
        UserError: If the column, or a table, is asked for and not there, or nobody has a label in it.
    """
    names = ("participants.tsv", "participants.csv")
    tables = sorted(path for path in data_dir.iterdir() if path.name.lower() in names and path.is_file())
    visits = sorted({path for source in sources for path in _sessions_tables(data_dir, source)})
    if not tables and not visits:
        if column:
            raise UserError(f"--label-column {column}: no participants.tsv in {data_dir} to take labels from")
        return [""] * len(sources), []
    notices, of_person, of_visit, names_used, read_from, seen = [], {}, {}, [], [], []
    for path in [*tables, *visits]:
        columns, rows, separator = read(path)
        seen += columns
        name = next((one for one in ([column.lower()] if column else LABEL_COLUMNS) if one in columns), None)
        if name is None:
            if not column and path in tables:
                listed = ", ".join(columns) or "nothing"
                notices.append(f"{path.name} has none of the columns {', '.join(LABEL_COLUMNS[:3])}; it has {listed}")
            continue
        if separator != "\t":
            notices.append(f"{path.name} is not separated by tabs but by {separator!r}, and read so")
        read_from.append(path)
        names_used.append(name)
        _collect(path, columns, rows, name, path.parent.name if path in visits else None, of_person, of_visit)
    if not read_from:
        if column:
            first = (tables or visits)[0]
            raise UserError(f"{first}: no column {column!r}; it has {', '.join(dict.fromkeys(seen)) or 'none'}")
        return [""] * len(sources), notices
    twice = sorted(name for known in of_person.values() for name, labels in known.items() if len(set(labels)) > 1)
    if twice:
        notices.append(
            f"{len(twice)} people have several labels in the table, and the first is taken: {twice[0]} is one"
        )
    if of_visit and of_person and len(set(names_used)) > 1:
        of_person = {}
        notices.append(f"labels are taken from {names_used[-1]} of the visits' tables alone, not from {names_used[0]}")
    labels = [_label(source, of_person, of_visit) for source in sources]
    if not any(labels):
        people = len({source.subject_id for source in sources})
        example = next((name for known in of_person.values() for name in known), "")
        message = f"{read_from[0]}: 0 of {people} people have a label in it; its ids are like {example!r}"
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


def _collect(path, columns, rows, name, person, of_person, of_visit):
    """Adds the labels in column `name` of a table's rows: to those of people, or of visits.

    Args:
        person: Whose visits the table lists; None for a table of people.
        of_person: Lists of labels by id as written, by key.
        of_visit: A label by the keys of person and visit.
    """
    ids = "session_id" if person else next((one for one in ID_COLUMNS if one in columns), ID_COLUMNS[0])
    if ids not in columns:
        raise UserError(f"{path}: no column {ids!r}; it has {', '.join(columns)}")
    for row in rows:
        whose, label = row.get(ids), row.get(name, "")
        label = "" if label.lower() in MISSING else label
        visit = whose if person else row.get("session_id")
        if not whose:
            continue
        if visit:
            of_visit[_key(person or whose), _key(visit)] = label
        else:
            of_person.setdefault(_key(whose), {}).setdefault(whose, []).append(label)


def _sessions_tables(data_dir, source):
    """BIDS's table of a person's visits, where it is there."""
    path = data_dir / source.subject_id / f"{source.subject_id}_sessions.tsv"
    return [path] if path.is_file() else []


def _label(source, of_person, of_visit):
    visit = of_visit.get((_key(source.subject_id), _key(source.session)))
    if visit is not None:
        return visit
    rows = of_person.get(_key(source.subject_id), {})
    for name, labels in rows.items():
        if name.removeprefix("sub-") == source.subject_id.removeprefix("sub-"):
            return labels[0]
    return next(iter(rows.values()))[0] if len(rows) == 1 else ""  # ids that agree but for zeros, if only one does
