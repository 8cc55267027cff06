"""report.html: all that predict.py found, in one file that needs no network."""

import base64
import html
import json

import decoding

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #eee }
td:first-child, th:first-child { text-align: left }
th { background: #f5f5f5 }
th button { font: inherit; border: 0; background: none; cursor: pointer; padding: 0 }
th button::after { content: " \\2195"; color: #999 }
figure { margin: 1.5rem 0 }
img { max-width: 100% }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px }
figcaption, footer { color: #555 }
.fault { background: #fde8e8; padding: .5rem 1rem }
""".strip()

# A click on a column's head sorts by it, a second one the other way round; text that is no number goes by the alphabet.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const column = [...head.parentElement.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.children[column].textContent;
    const compare = (a, b) => {
      const difference = parseFloat(key(a)) - parseFloat(key(b));
      return Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference;
    };
    body.append(...[...body.rows].sort((a, b) => down ? compare(b, a) : compare(a, b)));
  });
}
""".strip()

# Each picture, the question it answers, and how to read it.
PICTURES = (
    (
        "reconstructions.png",
        "What is lost between a slice and its codes?",
        "Test people, one slice each: input, output, and their difference.",
    ),
    (
        "worst.png",
        "How bad can it get?",
        "The test slices of as many people whose SSIM inside the head is lowest.",
    ),
    (
        "masks.png",
        "What counts as inside the head?",
        "The outline within which SSIM is averaged: brighter than half of Otsu's threshold, gaps and holes closed, "
        "the largest part.",
    ),
    (
        "spectrum.png",
        "How much of each size of detail survives?",
        "Power of reconstructions and samples over that of test slices, in eight rings of the frequency plane. "
        "1 is right; below 1 is blur.",
    ),
    (
        "codebook.png",
        "Are all codes at work?",
        "Use of each code on the test slices, and how many different ones appear at each place.",
    ),
    (
        "bits.png",
        "Where do the bits go?",
        "What the codes of a slice cost under the prior, in bits: the mean over test slices, and single slices.",
    ),
    ("history.png", "Has training come to its end?", "Curves of each stage, training and validation people."),
    ("samples.png", "Do samples look like brains?", "The first samples, not picked."),
    (
        "positions.png",
        "Does the prior know where a slice lies?",
        "The same noise at eight slice positions, from the lowest to the highest.",
    ),
    (
        "closest.png",
        "Are samples copies of training slices?",
        "The samples most like a training slice, above that slice; MS-SSIM after a translation.",
    ),
)

RECONSTRUCTION = {
    "ssim": ("SSIM, whole image", 3),
    "ssim_head": ("SSIM, inside the head", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "psnr_db": ("PSNR (dB)", 2),
    "l1": ("L1", 4),
}
REALISM = {
    "frechet_distance": ("Fréchet distance", "0 for equal sets", 2),
    "mmd": ("MMD², unbiased", "around 0 for equal sets", 4),
    "precision": ("precision", "share of samples that lie where real slices lie", 3),
    "recall": ("recall", "share of real slices that lie where samples lie", 3),
    "density": ("density", "around 1 for equal sets", 3),
    "coverage": ("coverage", "share of real slices that have a sample near", 3),
    "classifier_accuracy": ("accuracy of a classifier", "0.5 cannot tell", 3),
    "ms_ssim_diversity": ("MS-SSIM between people", "lower is more diverse", 3),
    "head_area": ("head, share of the slice", "", 3),
    "head_area_distance": ("head, distance of distributions", "0 for equal sets", 4),
    "symmetry": ("left-right symmetry", "correlation", 3),
    "symmetry_distance": ("symmetry, distance of distributions", "0 for equal sets", 4),
}


def number(value, digits):
    """A number as text, "-" for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def with_interval(summary, digits):
    """Mean and interval of what `metrics.over_people` returns."""
    if summary["ci95"] is None:
        return number(summary["mean"], digits)
    return f"{number(summary['mean'], digits)} ({' to '.join(number(end, digits) for end in summary['ci95'])})"


def table(head, rows, sortable=False, name=""):
    """An HTML table of text."""
    cells = [f"<button>{html.escape(text)}</button>" if sortable else html.escape(text) for text in head]
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return (
        f'<table id="{name}"><thead><tr>{"".join(f"<th>{cell}</th>" for cell in cells)}</tr></thead>'
        f"<tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )


def summary_tables(result):
    """The tables of the first section, as HTML."""
    methods = {"this model": result["reconstruction"], **result["baselines"]}
    bits = {"this model": result["codebook"]["bits_per_pixel"]}
    reconstruction = table(
        ["95 % intervals over people", *(name for name, _ in RECONSTRUCTION.values()), "bits per pixel"],
        [
            [
                name,
                *(with_interval(found[key], digits) for key, (_, digits) in RECONSTRUCTION.items()),
                number(bits.get(name, found.get("bits_per_pixel")), 3),
            ]
            for name, found in methods.items()
        ],
        name="reconstruction",
    )
    codes, prior = result["codebook"], result["prior"]
    per_code = {"mean": prior["bits_per_code"], "ci95": prior["bits_per_code_ci95"]}
    rate = table(
        ["codes and prior", ""],
        [
            ["codes in use", f"{codes['codes_in_use']:.0%}"],
            ["perplexity", number(codes["perplexity"], 1)],
            ["bits per pixel by the codes' entropy", number(codes["entropy_bits_per_pixel"], 4)],
            ["bits per pixel under the prior", number(prior["bits_per_pixel"], 4)],
            ["bits per code under the prior", with_interval(per_code, 3)],
            ["bits per image under the prior", number(prior["bits_per_image"], 0)],
        ],
        name="codes",
    )
    if "realism" not in result:
        return reconstruction + rate
    realism, copies = result["realism"], result["realism"]["copies"]
    samples = table(
        ["against the slices of the test people", "samples", "training people, decoded", "training people", ""],
        [
            [name, *(number(realism[one][key], digits) for one in ("samples", "decoded_floor", "floor")), meaning]
            for key, (name, meaning, digits) in REALISM.items()
        ],
        name="realism",
    )
    copied = table(
        ["copies", ""],
        [
            ["samples nearer to a training slice than 99 % of test slices", f"{copies['share_of_samples']:.1%}"],
            ["that limit, MS-SSIM", number(copies["limit_ms_ssim"], 3)],
            ["samples nearer than 99 % of reconstructions", f"{copies['share_of_samples_by_reconstructions']:.1%}"],
            ["that limit, MS-SSIM", number(copies["limit_ms_ssim_by_reconstructions"], 3)],
            ["median of test slices, MS-SSIM", number(copies["median_ms_ssim_test_slices"], 3)],
            ["median of reconstructions of test slices, MS-SSIM", number(copies["median_ms_ssim_reconstructions"], 3)],
            ["median of samples, MS-SSIM", number(copies["median_ms_ssim_samples"], 3)],
        ],
        name="copies",
    )
    explained = (
        "<p>Samples, slices of half of the training people after the VQ-VAE (what samples of a perfect prior would "
        "reach), and those slices as they are (what real slices reach), each against the test people; "
        f"{realism['features']} features.</p>"
    )
    return reconstruction + rate + explained + samples + copied


def write(folder, config, result, people, credit):
    """Writes report.html from what is in the folder already.

    Args:
        folder: Where the pictures are, and where the report goes.
        config: The run's config.json.
        result: What is in metrics.json.
        people: A dictionary for each test person, all with the same keys: the columns of the table.
        credit: Whom to name for the data; may be empty.
    """
    parts = [
        f"<h1>{html.escape(config['data']['title'])}</h1>",
        f"<p>A VQ-VAE with its {result['decoder']} decoder and a PixelCNN prior, measured on test people who stand "
        "in no other split.</p>",
        *(f'<p class="fault">Warning: {html.escape(fault)}</p>' for fault in result["faults"]),
        "<h2>Summary</h2>",
        summary_tables(result),
        "<h2>Pictures</h2>",
    ]
    for name, question, caption in PICTURES:
        if not (folder / name).exists():
            continue
        data = base64.b64encode((folder / name).read_bytes()).decode()
        parts.append(
            f'<figure><h3>{html.escape(question)}</h3><img src="data:image/png;base64,{data}" alt="{name}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    rows = [[number(v, 4) if isinstance(v, float) else v for v in person.values()] for person in people]
    settings = {name: dict(config[name]) for name in ("options", "models", "versions") if name in config}
    where = ("data_dir", "cache_dir")  # of no use to others
    settings["options"]["data"] = {
        name: value for name, value in config["options"]["data"].items() if name not in where
    }
    parts += [
        "<h2>Person by person</h2>",
        "<p>Means over each test person's slices; a click on a column's head sorts by it.</p>",
        table(list(people[0]), rows, sortable=True, name="people"),
        "<h2>The run</h2>",
        f"<p>SHA-256 of the split: <code>{html.escape(config['splits_sha256'])}</code></p>",
        f"<pre>{html.escape(json.dumps(settings, indent=2))}</pre>",
        f"<footer>{html.escape(credit)}</footer>",
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(config["data"]["title"])}'
        f"</title><style>{STYLE}</style></head><body>{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )
    decoding.write_text(folder / "report.html", page)
