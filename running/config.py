"""config.json of a run: what was asked, and on which data; read, and compared with what is asked now."""

import json

from system.console import UserError

WHERE_AND_HOW_CALLED = (
    "options.data.data_dir",
    "options.data.cache_dir",
    "data.title",
    "data.credit",
    "data.notices",
    "data.about",
    "options.start_from",
)


def read_config(run_dir):
    """config.json of a run.

    Raises:
        UserError: If the folder holds no run, or a damaged one.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise UserError(f"{run_dir}: no run here (no config.json); run train.py with this --run-dir first")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["options"]["data"]["data_dir"], config["data"]["labels"]  # noqa: B018
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); train again in another folder") from error
    return config


def refuse_if_different(path, config):
    """Raises UserError if the run at `path` has other settings; what the data are counts, not where they lie."""
    old = read_config(path.parent)
    old["options"] = {"heads": {"neighbours": False}, "start_from": None, **old["options"]}  # new since then
    differences, free = [], set(WHERE_AND_HOW_CALLED)
    if not (path.parent / "sharp_history.csv").exists():  # a phase that has not begun
        name = "options.sharp_training"
        free |= {name, *(f"{name}.{option}" for option in config["options"]["sharp_training"])}

    def compare(a, b, name):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a):  # options that are new since then had one way to be
                compare(a.get(key), b.get(key), f"{name}.{key}")
        elif a != b and name not in free:
            differences.append(f"{name} was {a!r} and is now {b!r}")

    for part, value in json.loads(json.dumps(config)).items():
        compare(old.get(part), value, part)
    if differences:
        raise UserError(
            f"{path.parent}: holds a run of other settings: {'; '.join(differences)}; give another --run-dir"
        )
