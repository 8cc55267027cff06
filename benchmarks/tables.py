"""Writes the tables of the pages from the files in results/: no figure in them is typed by hand.

    python -m benchmarks.tables

`PAGES` says which table is on which page. A table is found by its first cell; what stands around it is left alone.
tests/test_benchmarks.py checks that the pages agree with the files.
"""

import json
import re
import sys
from functools import partial

from benchmarks import harness

with harness.command(__name__, __doc__, "stopped") as command:
    from evaluation import report
from evaluation.metrics import percent
from system import files
from system.console import UserError

RUNS = {
    "ds002748": "ds002748, 224×224, factor 8",
    "ds002748_sharp": "ds002748, sharp decoder",
    "ixi": "IXI, 128×128, factor 4",
    "ixi_sharp": "IXI, sharp decoder",
    "demo": "demo, 128×128, factor 8",
}
SHARP = {"ds002748_sharp": "ds002748", "ixi_sharp": "IXI"}
HEADS = "ds002748_heads"  # the run of train.py --neighbours, sharp decoder
LATER = ("peers/generators.json", "ds002748/codes.json", "ixi/codes.json")  # once they are measured
USED = {HEADS: "ds002748", "ixi_sharp": "IXI"}  # on which scans were completed and mapped


# By the end of a file's name in results/: the columns of its table, title = format; `more` says what is not in the
# file. A mean that has an interval in the file is shown with it, or by `.mean` without. At most five narrow columns, so
# that nothing is cut off where a page is read.
LISTINGS = {
    "sampling.json": """codes, batch = {grid}×{grid}, {batch} | textbook loop (s) = {naive_s:,.0f} |
        cached / compiled (s) = {cached_s:.2f} / {compiled_s:.2f} |
        over one pass = {cached_over_teacher_forced:.1f} / {compiled_over_teacher_forced:.1f} | exact = {equal}""",
    "codes.json": """codes of {cohort} = {codes} | SSIM inside the head = {ssim_head:.3f} |
        bits a slice = {bits_per_image:,.0f} | Fréchet distance: samples / decoded / people = {distances} |
        seconds a sample = {seconds_a_sample:.2f}""",
    "ablation.json": """variant = {variant} | SSIM, head = {ssim_head.mean:.3f} | PSNR (dB) = {psnr_db.mean:.2f} |
        images/s = {examples_per_second:.0f}""",
    "generators.json": """{number} slices of each = {entry} | Fréchet distance = {frechet_distance:.0f} |
        precision / recall = {precision:.2f} / {recall:.2f} | copies = {copies:.1%} |
        seconds a sample = {seconds_a_sample:.2f}""",
    "heads.json": """{number} heads drawn = {heads} | MS-SSIM of neighbours = {neighbours:.3f} |
        Fréchet distance, coronal / sagittal = {coronal:.0f} / {sagittal:.0f} |
        bits of each code, lowest eighth / middle / highest = {bits[0]:.2f} / {bits[4]:.2f} / {bits[7]:.2f}""",
    "training.json": """stage = {name} | pixels / codes = {image_size} / {grid}×{grid} | batch = {batch} |
        images/s = {images_per_second:.1f} | minutes, 9,664 slices = {epoch_minutes:.1f}""",
    "anomaly.json": """map, {whose} = {map} | AUROC = {auroc.mean:.3f} | average precision = {average_precision:.3f} |
        best Dice = {dice.mean:.3f}""",
    "completion.json": """completion, {whose} = {completion} | error under the mask = {hidden.mean:.3f} |
        less = {hidden_less:+.3f} | at its lower edge = {lower_edge.mean:.3f} | seconds a draw = {seconds_each:.1f}""",
    "start.json": """run, ten people of IXI = {run} | SSIM inside the head = {ssim_head.mean:.3f} |
        bits a slice = {bits_per_image.mean:.0f} | minutes of training = {minutes:.0f}""",
    "ventricles.json": """ventricles, share of the head = {images} | AD = {AD:.1%} | NC = {NC:.1%} |
        difference = {difference:.1%}""",
    "leak.json": """split, measured on = {split}, {place} | SSIM inside the head = {ssim_head.mean:.3f} |
        of the nearest training slice = {copy_ssim_head.mean:.3f} | bits per code = {bits_per_code.mean:.3f}""",
}


class Mean:
    """A mean and its interval, as "0.843 (0.835–0.850)", or with a sign "+0.1 (-0.1 to +0.2)"."""

    def __init__(self, mean, ends):
        self.mean, self.ends = mean, ends

    def __format__(self, form):
        mean, *ends = (format(value, form) for value in (self.mean, *self.ends))
        return f"{mean} ({(' to ' if '+' in form else '–').join(ends)})"


class Row(dict):
    """What a file says, with a `Mean` for each mean that has an interval; what it does not say is shown as nothing."""

    def __init__(self, found):
        super().__init__({key: Row(value) if isinstance(value, dict) else value for key, value in found.items()})
        for key, value in found.items():
            if isinstance(value, dict) and value.get("ci95"):
                self[key] = Mean(value["mean"], value["ci95"])
            elif found.get(f"{key}_ci95"):
                self[key] = Mean(value, found[f"{key}_ci95"])

    def __missing__(self, key):
        return Row({})

    def __format__(self, form):
        return ""


def load(name):
    """A JSON file of results/."""
    return json.loads((harness.ROOT / "results" / name).read_text(encoding="utf-8"))


def more(row):
    """What a table shows of a row beside what the file says."""
    found = {}
    if "exact" in row:
        found["equal"] = "yes" if row["exact"] else f"but for {row['different_codes']} codes"
    if "stage" in row:
        found["name"] = "VQ-VAE" if row["stage"] == "vqvae" else "prior"
        found["epoch_minutes"] = 9664 / row["images_per_second"] / 60  # of OASIS as PNG
    if "bits_by_level" in row:
        whose = ("samples", "decoded_floor", "floor")
        found["distances"] = " / ".join(f"{row[f'frechet_{name}']:.0f}" for name in whose)
    if "map" in row:
        found["map"] = row["map"].replace("|", r"\|")
    if row.get("completion") == "decoder alone":
        found["seconds_each"] = Row({})  # nothing is drawn
    if "run" in row:
        found["minutes"] = row["seconds"] / 60
    return found


def table(head, rows):
    """Lines of a table in Markdown, from the cells of each line."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def listing(name):
    """A table with a line for each row of a file, as `LISTINGS` says."""
    found, text = load(name), next(text for end, text in LISTINGS.items() if name.endswith(end))
    titles, forms = zip(*(column.strip().split(" = ") for column in text.split(" |")), strict=True)
    rows = [row for row in found["rows"] if row.get("lesions", "all") == "all"]
    if name == "leak/leak.json":
        places = {"test": "its own test slices", "new people": "new people"}
        rows = [{"split": row["split"], "place": place, **row[key]} for row in rows for key, place in places.items()]
    told = [Row(row | more(row)) for row in rows]
    head = [title.format(**found, whose=USED.get(name.split("/")[0])) for title in titles]
    return table(head, [[form.format_map(row) for form in forms] for row in told])


def lesions(name):
    """Scores of real lesions: a line for each map, with every person's."""
    found, by_map = load(name), {}
    for row in found["rows"]:
        by_map.setdefault(row["map"], {})[row["person"]] = row
    scores, whose = {"auroc": "AUROC", "average_precision": "average precision", "dice": "best Dice"}, found["people"]
    share = " / ".join(f"{one:.1%}" for one in found["lesion_share"])
    rows = [["share of the voxels that are lesions", "", share, ""]]
    for name, people in by_map.items():
        rows.append([name, *(" / ".join(f"{people[one][score]:.2f}" for one in whose) for score in scores)])
    return table([f"map, {', '.join(whose)}", *scores.values()], rows)


def beside(head, lines, runs):
    """A table with a column for each run, by folder what it is called, and a line of each title and format."""
    columns = []
    for name in runs:
        found = load(f"{name}/metrics.json")
        codes, (least, *_, most) = found["codebook"], sorted(found["reconstruction_power_ratio"])
        used = f"{codes['num_embeddings']} / {percent(codes['codes_in_use'])} / {codes['perplexity']:.0f}"
        form = "{epochs} / {seconds:,.0f} / {fastest_epoch_seconds:.1f}"
        times = {stage: form.format(**one) for stage, one in found["training"].items()}
        people = found["reconstruction"]["ssim"]["people"]
        columns.append(Row(found | {"used": used, "least": least, "most": most, "times": times, "people": people}))
    rows = [[title, *(form.format_map(one) for one in columns)] for title, form in lines.items()]
    return table([head, *runs.values()], rows)


BITS = "{prior[bits_per_code]:.3f}"
QUALITY = {name: f"{{reconstruction[{key}]:.{digits}f}}" for key, (name, digits) in report.RECONSTRUCTION.items()}


def summary(names=(*SHARP, "demo"), head="on test people"):
    """The README's, and of one run alone a model card's: what matters most of reconstructions, codes and samples."""
    lines = {
        "test people / slices": "{people} / {slices}",
        **{name: form for name, form in QUALITY.items() if "SSIM " in name or "PSNR" in name},
        "codes / in use / perplexity": "{used}",
        "bits per code under the priors": BITS,
        "Fréchet distance: samples / other people, decoded": "{realism[samples][frechet_distance]:.0f} / "
        "{realism[decoded_floor][frechet_distance]:.0f}",
        "samples closer to a training slice than 99 % of test slices are": "{realism[copies][share_of_samples]:.1%}",
    }
    return beside(head, lines, {name: RUNS[name] for name in names})


def results(head, names):
    """Reconstruction, codes and prior of some runs; of sharp decoders the reconstruction: the rest is the same."""
    lines = {
        "people / slices for testing": "{people} / {slices}",
        **QUALITY,
        "least and greatest share of power in eight bands": "{least:.2f} / {most:.2f}",
    }
    if not set(names) <= set(SHARP):
        lines |= {
            "bits per pixel, raw": "{codebook[bits_per_pixel]:.3g}",
            "bits per pixel, by the codes' entropy": "{codebook[entropy_bits_per_pixel]:.3f}",
            "bits per pixel, under the prior": "{prior[bits_per_pixel]:.4f}",
            "priors, bits per code": BITS,
            "bits per slice / of these the coarse codes'": "{prior[bits_per_image]:,.0f} / "
            "{prior[coarse_bits_per_image]:,.0f}",
            "codes / in use / perplexity": "{used}",
        }
    return beside(head, lines, {name: RUNS[name] for name in names})


def both():
    """Slices drawn alone by the run that draws heads, beside those of the run that does not."""
    lines = {
        "bits per code under the priors": BITS,
        "samples over decoded slices: ratio of the Fréchet distances": "{realism[ratio]:.2f}",
        "the prior's own gap": "{realism[prior_gap][ratio]:.2f}",
        "coverage": "{realism[samples][coverage]:.3f}",
        "both lateral ventricles at 0.4 to 0.65": "{realism[anatomy][samples][both_ventricles]:.3f}",
    }
    return beside("slices drawn alone", lines, {"ds002748_sharp": "ds002748", HEADS: HEADS})


def times():
    """How long each stage of each run was trained."""
    lines = {title: f"{{times[{stage}]}}" for stage, title in report.STAGES.items()}
    return beside("epochs / seconds / fastest epoch", lines, {name: RUNS[name] for name in (*SHARP, "demo")})


def rows_of(found):
    """Rows of a table of the report; what the first cell means, where it says so, stands in it."""
    rows = []
    for first, *cells in found["rows"]:
        name, meaning = first if isinstance(first, tuple) else (first, "")
        cells = ["" if cell == "-" else str(cell).replace(report.NO_BREAK, " ") for cell in cells]
        rows.append([f"{name}: {meaning}" if meaning else name, *cells])
    return rows


def baselines(name):
    """The figures of one run and of what needs no model, as in its report, without intervals."""
    first = report.reconstruction_table(load(f"{name}/metrics.json"))
    rows = rows_of(first)
    if f"{name}_sharp" in RUNS:
        sharp = rows_of(report.reconstruction_table(load(f"{name}_sharp/metrics.json")))[0]
        rows.insert(1, ["this model, sharp decoder", *sharp[1:]])
    kept = [i for i, title in enumerate(first["head"]) if i and "MS-SSIM" not in title and "difference" not in title]
    rows = [[row[0], *(row[i].partition(" (")[0] for i in kept)] for row in rows]
    return table([RUNS[name], *(first["head"][i] for i in kept)], rows)


def realism(name):
    """Samples of a run against the test people."""
    found = load(f"{name}/metrics.json")["realism"]
    rows = rows_of(report.samples_tables(found)["realism"])
    copies = f"{found['copies']['share_of_samples']:.1%}"
    rows.append(["closer to a training slice than 99 % of test slices are (more: copies)", copies, "", "1%"])
    of = f"{RUNS[name].partition(',')[0]}, against the test people"
    return table([of, "samples", "training people, decoded", "training people"], rows)


def anatomy(title, runs):
    """Anatomy of samples and of what they can be compared with, for some runs by folder with what they are called."""
    found = {name: report.samples_tables(load(f"{name}/metrics.json")["realism"])["anatomy"] for name in runs}
    rows = [[f"{what}: {row[0]}", *row[1:]] for name, what in runs.items() for row in rows_of(found[name])]
    head = [title, *next(iter(found.values()))["head"][1:]]
    kept = [i for i, name in enumerate(head) if name != "training people, decoded"]
    return table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def peers():
    """This project's VQ-VAE and its peers: what each costs, and its quality at each budget."""
    found = sorted(load("peers/peers.json")["rows"], key=lambda row: row["minutes"])
    rows = {row["entry"]: Row({}) for row in found}
    for row in found:
        form = "{ssim_head.mean:.3f} / {psnr_db.mean:.2f}"
        rows[row["entry"]] |= Row(row) | {f"{row['minutes']:g} min": form.format_map(Row(row))}
    cells = {
        "VQ-VAE": "{entry}",
        "trained parameters": "{parameters:,}",
        "images/s": "{examples_per_second:.1f}",
        **{f"{row['minutes']:g} min": f"{{{row['minutes']:g} min}}" for row in found},
    }
    return table([*cells], [[cell.format_map(row) for cell in cells.values()] for row in rows.values()])


def heads(run):
    """Stacks of slices beside real ones, as in the report, without those of slices drawn alone and of two floors.

    The last column has training people where views are compared, and all people where volumes are.
    """
    found = load(f"{run}/metrics.json").get("heads")
    if found is None:
        raise UserError(f"results/{run}/metrics.json: no stacks of slices; evaluate a run of train.py --neighbours")
    rows = [
        [name, drawn, decoded, test, training or everyone]
        for name, drawn, _, decoded, test, _, training, everyone in rows_of(report.heads_table(found))
    ]
    names = ("test people, decoded", "test people", "training people (views), all people (ml)")
    return table(["stacks of slices", f"{found['number']} drawn", *names], rows)


def layers(which):
    """The layers of "vqvae" or "prior", as docs/figures.py counts them."""
    from docs import figures

    rows, name = figures.layers()[which], {"vqvae": "VQ-VAE", "prior": "prior"}[which]
    rows = [*rows, ("all of them", "", sum(number for *_, number in rows))]
    return table([name, "output shape", "trained parameters"], [[*words, f"{number:,}"] for *words, number in rows])


def versions():
    """The packages of requirements.txt, in the versions of requirements-lock.txt."""
    wanted, lock = ((harness.ROOT / name).read_text() for name in ("requirements.txt", "requirements-lock.txt"))
    locked = dict(re.findall(r"^([\w-]+)==(\S+)$", lock, re.MULTILINE))
    names = re.findall(r"^([\w-]+)[<>=~]", wanted, re.MULTILINE)
    return table(["package", "version"], [[name, locked[name]] for name in names])


GALLERY = {  # by the first cell of its table: a section of the report, or pictures of their own, each with a line
    "what is lost": "reconstruction",
    "codes": "codes",
    "drawn slices": "samples",
    "training": "training",
    "stacks, scans, and comparisons": {
        "ds002748_heads/volumes.png": "Stacks drawn by the model, beside people",
        "using/volumes.png": "Six stacks drawn by the model",
        "ds002748_heads/samples.png": "Single slices of the run of stacks",
        "using/inputs.png": "A scan of one's own, reconstructed",
        "ds002748_heads/completion.png": "What may lie under a mask, ds002748",
        "ixi_sharp/completion.png": "What may lie under a mask, IXI",
        "ds002748_heads/anomaly.png": "Planted lesions, and maps of what is uncommon, ds002748",
        "ixi_sharp/anomaly.png": "Planted lesions, and maps of what is uncommon, IXI",
        "leak/leak.png": "What a split by slice does",
        "peers/reconstructions.png": "Three slices after ten minutes of each VQ-VAE",
        "peers/generators.png": "Drawn slices, and those of a latent diffusion model",
    },
}


def gallery(title):
    """Thumbnails of a group of pictures; one that a sharp decoder does not change is shown under the plain one."""
    shown, results = GALLERY[title], harness.ROOT / "results"
    if isinstance(shown, dict):  # of some the benchmark has not been run
        shown = {name: line for name, line in shown.items() if (results / name).exists()}
    if isinstance(shown, str):
        of_section, shown = [name for name, picture in report.PICTURES.items() if picture.section == shown], {}
        for name in of_section:
            seen = set()
            for run in (run for run in RUNS if (results / run / name).exists()):
                content = (results / run / name).read_bytes()
                if content not in seen:
                    of = RUNS[run] if run in SHARP else RUNS[run].partition(", ")[0]
                    shown[f"{run}/{name}"] = f"{of}: {report.PICTURES[name].question}"
                seen.add(content)
    cells = [f'[<img src="{path}" width="230" alt="{line}">]({path})<br>{line}' for path, line in shown.items()]
    cells += [""] * (-len(cells) % 3)
    return table([title, "", ""], [cells[i : i + 3] for i in range(0, len(cells), 3)])


PAGES = {
    "README.md": [summary, versions],
    "docs/method.md": [partial(layers, "vqvae"), partial(layers, "prior")],
    "docs/data.md": [partial(listing, "leak/leak.json")],
    "docs/results.md": [
        partial(results, "on test people", ("ds002748", "ixi", "demo")),
        partial(results, "sharp decoders, on test people", tuple(SHARP)),
        *(partial(realism, name) for name in SHARP),
        partial(anatomy, "anatomy", SHARP),
    ],
    "docs/heads.md": [partial(heads, HEADS), partial(listing, f"{HEADS}/heads.json"), both],
    "docs/comparison.md": [
        *(partial(baselines, name) for name in ("ds002748", "ixi")),
        peers,
        *(partial(listing, name) for name in LATER if (harness.ROOT / "results" / name).exists()),
        partial(listing, "ixi/ablation.json"),
    ],
    "docs/using.md": [
        *(partial(listing, f"{run}/{name}.json") for name in ("completion", "anomaly") for run in USED),
        partial(lesions, "ds002748/lesions.json"),
        partial(listing, "start.json"),
    ],
    **{
        f"pretrained/{run.removesuffix('_sharp')}/MODEL_CARD.md": [partial(summary, (run,), "test people")]
        for run in ("ds002748_sharp", "ixi_sharp", "demo")
    },
    f"pretrained/{HEADS}/MODEL_CARD.md": [partial(heads, HEADS), both],
    "docs/sampling.md": [partial(listing, "sampling.json")],
    "docs/running.md": [times, partial(listing, "training.json")],
    "results/README.md": [
        *(partial(gallery, title) for title in GALLERY),
        partial(baselines, "demo"),
        partial(realism, "demo"),
        partial(anatomy, "anatomy of the demo", {"demo": "demo"}),
        partial(listing, "demo/ventricles.json"),
    ],
}


def rewrite(name, page):
    """The text of one of `PAGES` with every table made anew; raises UserError if one is not on the page."""
    lines = page.split("\n")
    for make in PAGES[name]:
        new = make()
        first = new[0].split("|")[1]
        place = next((i for i, line in enumerate(lines) if line.startswith(f"|{first}|")), None)
        if place is None:
            raise UserError(f"{name}: no table begins with |{first}|: put such a line where it is to stand")
        end = next((i for i in range(place, len(lines)) if not lines[i].startswith("|")), len(lines))
        lines[place:end] = new
    return "\n".join(lines)


@command
def main(args):
    for name in PAGES:
        path = harness.ROOT / name
        files.write_text(path, rewrite(name, path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
