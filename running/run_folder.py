"""The folder of a run: what was asked, on which people, and what came of it.

    config.json            resolved options, versions, the data's fingerprint, the split's SHA-256
    splits.csv             path, subject_id, session, slice_index, label, split, slice_position
    autoencoder.keras      what the VQ-VAE begins as: encoder and decoder without a quantiser
    vqvae.keras            the best VQ-VAE, by validation reconstruction loss
    coarse*.keras          the same two of shrunk slices: coarse codes
    codes.npz              the codes of every slice, in the order of splits.csv
    coarse_prior.keras     the best prior of coarse codes, by validation bits per code
    prior.keras            the best prior of codes, given the coarse codes
    sharp.keras            the VQ-VAE with its sharp decoder, where that phase was run
    ranges.json            what is usual for the test people, by decoder, once evaluate.py has measured it
    *_history.csv          one row an epoch
    bad_files.txt          files that were left out (--skip-bad-files), and why
    preview.png            a contact sheet of the data
    tensorboard/           logs for TensorBoard, under TensorFlow
    progress.png           validation slices and what the VQ-VAE makes of them, after each epoch
    *_state.weights.h5     from which a stopped run goes on

`train.py` writes it, `predict.py` and `evaluate.py` read it.
"""

import contextlib
import json
import math
import os
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from system import devices
from system.console import UserError, in_a_line
from system.files import write_text, write_whole

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


# ----------------------------------------------------------------------------------------------------------------
# What was asked, on which people
# ----------------------------------------------------------------------------------------------------------------


LOCK = ".brain_vqvae.lock"  # there while a command writes into the folder
VQVAES, PRIORS = ("vqvae", "coarse"), ("coarse_prior", "prior")  # models of a run, also their stages and files
BEGINNINGS = {"vqvae": "autoencoder", "coarse": "coarse_autoencoder"}  # without a quantiser
BLOWN_UP = 20  # times the commitment of the last epoch, in one of the first three
MONITORS = {  # the validation metric that each stage minimises
    **dict.fromkeys((*VQVAES, *BEGINNINGS.values()), "val_reconstruction_loss"),
    **dict.fromkeys(PRIORS, "val_bits_per_code"),
    "sharp": "val_power_gap",
}


def write_splits(run_dir, data):
    """Writes splits.csv and, where files were skipped, bad_files.txt."""
    columns = ["path", "subject_id", "session", "slice_index", "label", "split", "slice_position"]
    write_text(run_dir / "splits.csv", data.slices[columns].to_csv(index=False, lineterminator="\n"))
    (run_dir / "bad_files.txt").unlink(missing_ok=True)
    if data.bad_files:
        write_text(run_dir / "bad_files.txt", "".join(f"{name}\t{reason}\n" for name, reason in data.bad_files))


@contextlib.contextmanager
def alone_in(folder, program):
    """Makes a folder; inside, no other call of a program writes into it, on this machine or where locks are shared.

    Raises:
        UserError: If another is at work there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:  # removed in between by another, which has just ended
                raise BlockingIOError
            stack.callback(path.unlink, missing_ok=True)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another {program} is at work here; give another --run-dir or --output-dir, or wait"
            ) from error
        except (AttributeError, OSError):
            pass  # no fcntl on Windows; a folder that cannot be written; a file system that cannot lock
        yield


def footer(title, credit):
    """Title and credit of data, for the foot of a picture; a licence in full stands in the report."""
    lines = dict.fromkeys(filter(None, (title, credit)))
    return "\n".join(textwrap.shorten(line, 150, placeholder=" …") for line in lines)


def read_splits(run_dir):
    """splits.csv of a run: a DataFrame like `dataset.Data.slices`, but for `row`, for which one needs the data."""
    path = run_dir / "splits.csv"
    try:
        slices = pd.read_csv(path, dtype=str, keep_default_na=False)
        return slices.astype({"slice_index": int, "slice_position": float})
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged, or of an older version ({in_a_line(error)}); train again") from error


# ----------------------------------------------------------------------------------------------------------------
# What came of it
# ----------------------------------------------------------------------------------------------------------------


def save(write, path):
    """Calls a method that saves to a path; an earlier file stays as it is until the new one is whole.

    Of several processes the first one's file stays. All of them write, since Keras brings its variables up to date when
    it saves, which they must do together.
    """

    def into_its_room(partial):
        if path.exists():  # h5py does not always live through a disk that fills up
            partial.write_bytes(bytes(path.stat().st_size))
        write(partial)

    if devices.is_first():
        write_whole(path, into_its_room)
    else:
        with tempfile.TemporaryDirectory() as nowhere:
            write(Path(nowhere) / path.name)


def read_history(path):
    """Rows of a history as dictionaries of numbers; none where there is no file."""
    try:
        return pd.read_csv(path, dtype=str).astype(float).to_dict("records")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path}: damaged ({in_a_line(error)}); train again in another folder") from error


def waited(stage, history):
    """Epochs of a stage's history since the best one; 0 if that was the last."""
    values = [row.get(MONITORS[stage], math.nan) for row in history]
    return len(values) - 1 - int(np.argmin(values)) if values else 0


def is_finished(stage, history, training):
    """Whether a stage of this history has had all its epochs, or waited in vain for a better one."""
    return len(history) >= training["epochs"] or waited(stage, history) >= training["patience"]


def stages(options):
    """The stages of a run, in their order: without those of coarse codes where it has none."""
    return [stage for stage in (*VQVAES, *PRIORS) if options["coarse"]["image_size"] or "coarse" not in stage]


def parts(training):
    """Epochs of a VQ-VAE without a quantiser, and with it; of other stages none, and all."""
    first = round(training.get("continuous", 0) * training["epochs"])
    return first, training["epochs"] - first


def read_histories(run_dir, decoder="plain"):
    """The histories of the stages behind a run's prior and one of its decoders, by stage; a VQ-VAE's of both parts."""
    stages = (*VQVAES, *PRIORS, *["sharp"] * (decoder == "sharp"))
    histories = {stage: read_history(run_dir / f"{stage}_history.csv") for stage in stages}
    for stage, beginning in BEGINNINGS.items():
        first = read_history(run_dir / f"{beginning}_history.csv")
        rest = [{**row, "epoch": row["epoch"] + len(first)} for row in histories[stage]]
        histories[stage] = first + rest
    return histories


def blown_up(run_dir, stages=VQVAES):
    """A line for each VQ-VAE whose codes fled from the codebook in its first epochs, and which seldom recovers."""
    lines = []
    for stage in stages:
        commitment = [row["commitment_loss"] for row in read_history(run_dir / f"{stage}_history.csv")]
        if commitment and max(commitment[:3]) > BLOWN_UP * commitment[-1]:
            lines.append(
                f"the first epochs of {stage} blew up: commitment {max(commitment[:3]):.3g}, in the last epoch "
                f"{commitment[-1]:.3g}; its codes may hold little: train again with another --seed"
            )
    return lines


def best_decoder(run_dir):
    """ "sharp" where a run has that decoder, else "plain"."""
    return "sharp" if (run_dir / "sharp.keras").exists() else "plain"


def unfinished(run_dir, config, decoder):
    """A line for each stage, behind the prior and one decoder, that was stopped before its end."""
    lines = []
    histories = read_histories(run_dir, decoder)
    for stage in [*stages(config["options"]), *["sharp"] * (decoder == "sharp")]:
        history, training = histories[stage], config["options"][f"{stage}_training"]
        last = {**training, "epochs": parts(training)[1]}
        whole = len(history) >= training["epochs"]  # also where the files are another run's, of other parts
        if not (whole or is_finished(stage, read_history(run_dir / f"{stage}_history.csv"), last)):
            lines.append(f"{stage} was trained for {len(history)} of {training['epochs']} epochs")
    return lines


def read_ranges(run_dir, decoder):
    """What is usual for test people with a decoder: see `write_ranges`; empty where evaluate.py has not measured it."""
    path = run_dir / "ranges.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(decoder, {}) if path.exists() else {}
        for usual in (usual for kinds in found.values() for usual in kinds.values()):
            float(usual["mean"] + usual["sd"] * usual["people"] + usual["quantiles"][-1])
        return found
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged, or of an older version; run evaluate.py again") from error


def write_ranges(run_dir, decoder, per_slice, subject_ids):
    """Keeps what is usual for the test people, by metric: of their slices, and of each person's mean.

    Of both, `mean` and `sd`, the standard deviation; `quantiles`, 21 from the least (0 %) to the most (100 %); and how
    many `people` they are of. A metric that no slice has is left out.

    Args:
        per_slice: A dictionary of metrics for each test slice.
        subject_ids: Whose slice each is.
    """
    values = pd.DataFrame(per_slice).replace([np.inf, -np.inf], np.nan)
    of_people, usual = values.groupby(np.asarray(subject_ids)).mean(), {}
    for name in values:
        people = int(of_people[name].count())
        for kind, table in (("slices", values), ("people", of_people)) if people else ():
            some = table[name].dropna()
            usual.setdefault(name, {})[kind] = {
                "people": people,
                "mean": float(some.mean()),
                "sd": float(some.std(ddof=1)) if len(some) > 1 else 0.0,
                "quantiles": some.quantile(np.linspace(0, 1, 21)).round(4).tolist(),
            }
    old = {}
    with contextlib.suppress(UserError):  # a damaged file is replaced
        old = {other: found for other in ("plain", "sharp") if (found := read_ranges(run_dir, other))}
    write_text(run_dir / "ranges.json", json.dumps({**old, decoder: usual}, indent=1) + "\n")
