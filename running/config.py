"""config.json of a run: what was asked, and on which data; read, and compared with what is asked now."""

import json

from system.console import UserError

WHERE_AND_HOW_CALLED = (
    "options.data.data_dir",
    "options.data.cache_dir",
    "options.start_from",
    "data.title",
    "data.credit",
    "data.notices",
    "data.about",
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
    configs = [read_config(path.parent), json.loads(json.dumps(config))]
    if not (path.parent / "sharp_history.csv").exists():  # a phase that has not begun
        configs = [one | {"options": one["options"] | {"sharp_training": None}} for one in configs]
    differences = []

    def compare(old, new, name):
        if name in WHERE_AND_HOW_CALLED:
            return
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted(old.keys() | new.keys()):
                compare(old.get(key), new.get(key), f"{name}.{key}")
        elif old != new:
            differences.append(f"{name} was {old!r} and is now {new!r}")

    for part in configs[1]:
        compare(*(one.get(part) for one in configs), part)
    if differences:
        raise UserError(
            f"{path.parent}: holds a run of other settings: {'; '.join(differences)}; give another --run-dir"
        )


FREE = ("seed", "vqvae_fingerprint", "dropout", "restart_threshold", "commitment_cost", "reconstruction_loss")
FREE += ("ssim_weight", "num_labels", "maps")  # of a model, and it may all the same start from another's weights
FREE += ("max_dilation", "horizontal_kernel")  # which follow from sizes that are compared


def refuse_start(start_from, models):
    """Raises UserError if models, constructor arguments by name, are of other sizes than those of --start-from."""
    theirs = read_config(start_from).get("models", {})
    for name, asked in json.loads(json.dumps(models)).items():
        for key, value in asked.items():
            old = theirs.get(name, {}).get(key, {"num_quantizers": 1, "beside": 0}.get(key))  # of older versions
            if key not in FREE and old != value:
                raise UserError(
                    f"--start-from {start_from}: its {name} has {key} {old}, not {value}; leave out what changes it"
                )
