"""How samples stand to real slices: distances between sets of images, and copies of training slices.

No figure here means much alone, so each comes with its floor: the same figure for slices of training people, who have
no part in the features. A set of samples that reaches its floor cannot be told from real slices by that figure.
"""

import numpy as np
import scipy.fft
from scipy.spatial.distance import cdist
from skimage.registration import phase_cross_correlation
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

import dataset
from evaluation import anatomy, metrics
from extensions import losses

WAVELENGTHS = (3, 6, 12, 24)  # pixels; the codes' grid of factor 4 or 8 lies among them
ORIENTATIONS = 6
CELLS, THUMBNAIL = 4, 8  # cells along each side over which energies are averaged; side of the thumbnail
COMPONENTS = 64
NEIGHBOURS = 5
FOLDS = 5
MOST_SLICES = 2000  # training slices that the feature space is fitted to, and test slices that are compared
CANDIDATE_SLICES = 5  # training slices looked at closely for each image


# -- Features -----------------------------------------------------------------------------------------------------


class TextureFeatures:
    """What an eye could go by in a slice: texture of each size and orientation, roughly where, and the rough picture.

    Mean energy of log-Gabor filters (Field 1987) in each of 4 x 4 cells, for 4 wavelengths (3 to 24 pixels) and 6
    orientations, and a thumbnail of 8 x 8. It is no part of either model, needs no download, and sees what goes wrong
    in samples: blur and grain (the short wavelengths), broken folds (the middle ones), ventricles and outline (the long
    ones and the thumbnail).

    `kinds` numbers the features that are to be scaled alike: the cells of a filter, and those of the thumbnail.

    Args:
        size: Side of the images, S.
    """

    def __init__(self, size):
        y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
        radius, angle = np.hypot(y, x), np.arctan2(y, x)
        radius[0, 0] = 1.0  # the mean passes none of them
        filters = []
        for wavelength in WAVELENGTHS:  # each passes a band of about one octave and 33 degrees, on one side
            radial = np.exp(-(np.log(radius * wavelength) ** 2) / (2 * np.log(0.65) ** 2))
            radial[0, 0] = 0.0
            for k in range(ORIENTATIONS):
                away = np.angle(np.exp(1j * (angle - np.pi * k / ORIENTATIONS)))
                filters.append(radial * np.exp(-(away**2) / (2 * (np.pi / ORIENTATIONS / 1.5) ** 2)))
        self.filters = np.array(filters, "float32")
        self.kinds = np.concatenate([np.tile(np.arange(len(filters)), CELLS**2), np.full(THUMBNAIL**2, len(filters))])

    def __call__(self, images):
        """float in [0, 1], shape (n, S, S) -> float32, shape (n, 448)."""
        features = []
        for image in images:
            energy = np.abs(scipy.fft.ifft2(scipy.fft.fft2(image.astype("float32")) * self.filters, workers=-1))
            features.append(np.concatenate([_cells(energy, CELLS).ravel(), _cells(image[None], THUMBNAIL).ravel()]))
        return np.array(features, "float32")


def _cells(planes, number):
    """Means of (n, S, S) over number x number cells."""
    rows = np.array_split(planes, number, axis=1)
    return np.array([[cell.mean(axis=(1, 2)) for cell in np.array_split(row, number, axis=2)] for row in rows])


def can_judge(slices):
    """Why samples cannot be judged on these slices, or nothing: the figures need some people on either side."""
    train, test = (slices.subject_id[slices.split == split] for split in ("train", "test"))
    if len(test) - test.value_counts().max() < NEIGHBOURS or train.nunique() < 2:
        return "that takes two people for training, and five test slices beside those of any one person"
    return ""


class FeatureSpace:
    """Features turned to their 64 main directions, by some training people's slices.

    Before, features of one kind are divided by one number, the root of their mean variance: a cell that is black in
    nearly every training slice is not blown up, as it would be by a scale of its own.

    Args:
        features: Of training slices, shape (n, d).
        kinds: Which are of one kind: integers, shape (d,).
    """

    def __init__(self, features, kinds):
        variance = np.bincount(kinds, features.var(axis=0, dtype="float64")) / np.bincount(kinds)
        self._scale = np.sqrt(np.maximum(variance, 1e-12))[kinds]
        self._pca = PCA(min(COMPONENTS, *features.shape), svd_solver="full").fit(self.scale(features))

    def scale(self, features):
        """(n, d) -> (n, d), each kind scaled."""
        return features / self._scale

    def __call__(self, features):
        """(n, d) -> (n, 64), float64."""
        return self._pca.transform(self.scale(features))


# -- Distances between two sets -----------------------------------------------------------------------------------


def frechet_distance(a, b):
    """Squared Fréchet distance of two normal distributions with the sets' means and covariances.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): Heusel et al. 2017 (arXiv:1706.08500).

    Args:
        a, b: float, shapes (n, d) and (m, d).
    """
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    # The eigenvalues of C_a C_b are real and not negative; rounding may make them a little so.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0))
    difference = a.mean(axis=0) - b.mean(axis=0)
    return float(difference @ difference + sum(np.trace(c) for c in covariances) - 2 * roots.sum())


def mmd(a, b):
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, lemma 6), under a Gaussian kernel.

    The kernel's length is the median distance within b, the real slices; None where that is 0. Around 0, also below it,
    for sets of one kind.
    """
    length = np.median(cdist(b, b)[np.triu_indices(len(b), 1)])
    if length == 0:  # real slices that are all alike
        return None
    gamma = 1 / (2 * length**2)
    within = [(k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)) for x in (a, b) for k in [rbf_kernel(x, gamma=gamma)]]
    return float(sum(within) - 2 * rbf_kernel(a, b, gamma).mean())


def overlap(samples, real, sample_people, real_people):
    """How far two sets cover each other, by balls that reach to each point's fifth neighbour in its own set.

    A neighbour is a slice of another person: the nearest of all are the next slices of the same head, and balls that
    reach no further hold hardly any real slice of other people.

    Args:
        samples, real: Features, shapes (n, d) and (m, d).
        sample_people, real_people: Whose slice each is.

    Returns:
        Dictionary: `precision`, the share of samples within some ball of real slices, and `recall`, the reverse
        (Kynkäänniemi et al. 2019, arXiv:1904.06991); `density` and `coverage` (Naeem et al. 2020, arXiv:2002.09797),
        which one stray real slice cannot raise.
    """
    distance = cdist(real, samples)

    def reach(x, people):
        others = np.where(people[:, None] == people[None], np.inf, cdist(x, x))
        return np.sort(others, axis=1)[:, NEIGHBOURS - 1]

    in_real = distance <= reach(real, real_people)[:, None]
    in_samples = distance <= reach(samples, sample_people)[None]
    return {
        "precision": float(in_real.any(axis=0).mean()),
        "recall": float(in_samples.any(axis=1).mean()),
        "density": float(in_real.sum(axis=0).mean() / NEIGHBOURS),
        "coverage": float(in_real.any(axis=1).mean()),
    }


def classifier_accuracy(a, b, people_a, people_b):
    """Share of slices that a logistic regression puts into the right set, by cross-validation over people.

    1/2: the sets cannot be told apart. As many slices of each are taken; nobody is in two folds. A sample is a person
    of its own.

    Args:
        a, b: Features, shapes (n, d) and (m, d).
        people_a, people_b: Whose slice each is.

    Returns:
        Number from 0 to 1; None if a set has fewer than five people.
    """
    number = min(len(a), len(b))
    picked = [dataset.spread(len(x), number) for x in (a, b)]
    groups = np.concatenate([[f"a {people_a[i]}" for i in picked[0]], [f"b {people_b[i]}" for i in picked[1]]])
    target = np.repeat([0, 1], number)
    if min(len(set(groups[target == side])) for side in (0, 1)) < FOLDS:
        return None
    model = LogisticRegression(max_iter=2000)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    both = np.concatenate([a[picked[0]], b[picked[1]]])
    return float(cross_val_score(model, both, target, groups=groups, cv=folds).mean())


# -- Single images ------------------------------------------------------------------------------------------------


def radial_power(images):
    """Mean power of images (n, S, S) in each of `losses.rings`: (8,)."""
    ring = losses.rings(images.shape[1])
    power = np.mean([np.abs(scipy.fft.fft2(image)) ** 2 for image in images], axis=0)
    return (np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel()))[: losses.BANDS]


def power_ratio(power, real):
    """Power over that of real slices, ring by ring; None in a ring where real slices have none."""
    return [float(a / b) if b > 0 else None for a, b in zip(power, real, strict=True)]


def diversity(images, positions, people, rng, pairs=400):
    """Mean MS-SSIM of pairs of images of different people at nearly the same slice position; small is diverse.

    Returns:
        A number; None where no two people have slices within 0.05 of each other.
    """
    first, second = [], []
    for _ in range(20 * pairs):
        i = int(rng.integers(len(images)))
        near = np.flatnonzero((np.abs(positions - positions[i]) < 0.05) & (people != people[i]))
        if len(near):
            first.append(i)
            second.append(int(rng.choice(near)))
        if len(first) == pairs:
            break
    return float(np.mean(metrics.ms_ssim(images[first], images[second]))) if first else None


# -- Copies -------------------------------------------------------------------------------------------------------


class NearestTrainingSlice:
    """Finds the training slice most like an image, by MS-SSIM after a translation.

    Comparing every pair in full would take hours, so the five nearest by a thumbnail, with the head moved to the
    middle, are compared: a copy, moved or not, is among them.

    Args:
        images: Training slices, uint8, shape (n, S, S); may be memory-mapped.
        rows: Which of them to search.
    """

    def __init__(self, images, rows):
        self.images, self.rows = images, np.asarray(rows)
        thumbnails = np.array([self._thumbnail(images[row] / np.float32(255)) for row in self.rows])
        self._search = NearestNeighbors(n_neighbors=min(CANDIDATE_SLICES, len(self.rows))).fit(thumbnails)

    @staticmethod
    def _thumbnail(image):
        mask = metrics.head_mask(image)
        if mask.any():
            middle = [(np.flatnonzero(mask.any(axis=axis))[[0, -1]].sum() + 1) // 2 for axis in (1, 0)]
            image = np.roll(image, [side // 2 - m for side, m in zip(image.shape, middle, strict=True)], (0, 1))
        return _cells(image[None], min(32, image.shape[0] // 2)).ravel()

    def __call__(self, image):
        """Index into `rows` of the nearest slice, and its MS-SSIM to the image, float in [0, 1] of shape (S, S)."""
        (candidates,) = self._search.kneighbors(self._thumbnail(image)[None], return_distance=False)
        moved = []
        for candidate in candidates:
            other = self.images[self.rows[candidate]] / np.float32(255)
            if image.any() and other.any():  # black ones lie nowhere
                shift, _, _ = phase_cross_correlation(image, other, normalization=None)
                other = np.roll(other, shift.astype(int), (0, 1))
            moved.append(other)
        likeness = metrics.ms_ssim(np.repeat(image[None], len(moved), axis=0), np.array(moved))
        best = int(np.argmax(likeness))
        return int(candidates[best]), float(likeness[best])


def share_of_copies(samples_likeness, real_likeness):
    """Share of samples nearer to a training slice than all but 1 % of real slices of other people are.

    Args:
        samples_likeness, real_likeness: MS-SSIM of each image with its nearest training slice.

    Returns:
        (share, the 99th percentile of the real ones): a share of 0.01 is what real slices have.
    """
    limit = float(np.quantile(real_likeness, 0.99))
    return float((np.asarray(samples_likeness) > limit).mean()), limit


# -- All of it ----------------------------------------------------------------------------------------------------


class ImageSet:
    """Images with what is known of them.

    Args:
        images: float in [0, 1], shape (n, S, S).
        positions: Slice positions, shape (n,).
        people: Whose each is, shape (n,).
        extract: `TextureFeatures` of that size.
    """

    def __init__(self, images, positions, people, extract):
        self.images, self.positions, self.people = images, np.asarray(positions), np.asarray(people)
        self.features = extract(images)


def compare(candidates, real, space):
    """Every figure of one `ImageSet` against real slices.

    Returns:
        Dictionary of numbers; `power_ratio` holds eight, ring by ring.
    """
    a, b = space(candidates.features), space(real.features)
    images, positions, people = candidates.images, candidates.positions, candidates.people
    return {
        "number": len(a),
        "frechet_distance": frechet_distance(a, b),
        "mmd": mmd(a, b),
        **overlap(a, b, people, real.people),
        "classifier_accuracy": classifier_accuracy(
            space.scale(candidates.features), space.scale(real.features), people, real.people
        ),
        "ms_ssim_diversity": diversity(images, positions, people, np.random.default_rng(0)),
        "power_ratio": power_ratio(radial_power(images), radial_power(real.images)),
    }


def choose_floor(slices, number):
    """Training slices for the floor and for the feature space: two DataFrames, with nobody in both.

    Every second person is of the floor, so that labels, which paths are often ordered by, are in both as in the data;
    their slices are thinned to `number`, and the others' to what a feature space is fitted to.
    """
    train = slices[slices.split == "train"]
    for_floor = train.subject_id.isin(train.subject_id.unique()[::2])
    parts = ((train[for_floor], number), (train[~for_floor], MOST_SLICES))
    return tuple(part.iloc[dataset.spread(len(part), most)] for part, most in parts)


def find_copies(groups, data):
    """Whether images are copies of training slices, by the likeness of each to the nearest one.

    Args:
        groups: float in [0, 1], shape (n, S, S), of "samples", "test_slices" and their "reconstructions".
        data: The `dataset.Data`.

    Returns:
        What `judge_samples` calls `copies`, and the eight samples nearest to a training slice.
    """
    training = data.of("train").row.to_numpy()
    search = NearestTrainingSlice(data.images, training)
    nearest = {
        name: [search(image) for image in tqdm(images, f"nearest training slice, {name}", leave=False, disable=None)]
        for name, images in groups.items()
    }
    likeness = {name: np.array([value for _, value in pairs]) for name, pairs in nearest.items()}
    share, limit = share_of_copies(likeness["samples"], likeness["test_slices"])
    share_smooth, limit_smooth = share_of_copies(likeness["samples"], likeness["reconstructions"])
    copies = {
        "share_of_samples": share,
        "limit_ms_ssim": limit,
        "share_of_samples_by_reconstructions": share_smooth,
        "limit_ms_ssim_by_reconstructions": limit_smooth,
        **{f"median_ms_ssim_{name}": float(np.median(values)) for name, values in likeness.items()},
        "most_ms_ssim_samples": float(likeness["samples"].max()),
    }
    closest = np.argsort(-likeness["samples"])[:8]
    return copies, [(int(i), int(training[nearest["samples"][i][0]]), float(likeness["samples"][i])) for i in closest]


def judge_samples(samples, positions, data, vqvae, codes):
    """Samples against the slices of the test people, with what they can be compared with, and copies among them.

    Beside the samples stand slices of half of the training people, as many if there are (`floor`: what real slices of
    other people reach), and those slices after the VQ-VAE (`decoded_floor`: what samples of a perfect prior would
    reach, or a little better, since the VQ-VAE was trained on these people).

    Args:
        samples: float in [0, 1], shape (n, S, S).
        positions: Slice position of each, shape (n,).
        data: The data set, a `dataset.Data`.
        vqvae: The trained `modules.VQVAE`.
        codes: Those of the test slices, (n, grid, grid, D).

    Returns:
        Dictionary: `samples`, `decoded_floor`, `floor` and `test_slices`, the figures of each; `ratio` and `excess`,
        the Fréchet distance of samples over and less that of `decoded_floor`; `prior_gap`, the same two sets against
        the test slices *after* the VQ-VAE, so that its blur is on both sides and the prior alone is judged; `anatomy`,
        of each set (see `anatomy.describe` and `anatomy.distances`); `copies`, with the share of samples that are
        nearer to a training slice than 99 in 100 test slices are, and the same by reconstructions of test slices, which
        are as smooth as samples. And the eight samples nearest to a training slice, as (sample, row of `data.images`,
        MS-SSIM).
    """
    extract = TextureFeatures(data.image_size)

    def gather(slices):
        return ImageSet(data.pixels(slices), slices.slice_position, slices.subject_id, extract)

    def decoded(real, its_codes):
        return ImageSet(vqvae.decode(its_codes)[..., 0], real.positions, real.people, extract)

    chosen = dataset.spread(len(codes), MOST_SLICES)
    test = gather(data.of("test").iloc[chosen])
    decoded_test = decoded(test, codes[chosen])
    of_floor, of_space = choose_floor(data.slices, len(samples))
    space = FeatureSpace(gather(of_space).features, extract.kinds)
    floor = gather(of_floor)
    sets = {
        "samples": ImageSet(samples, positions, [f"sample {i}" for i in range(len(samples))], extract),
        "decoded_floor": decoded(floor, vqvae.encode(floor.images[..., None])),
        "floor": floor,
    }
    bar = tqdm(sets.items(), "sets against test people", leave=False, disable=None)
    result = {name: compare(images, test, space) for name, images in bar}
    made = ("samples", "decoded_floor")
    distance, lowest = (result[name]["frechet_distance"] for name in made)
    gaps = [frechet_distance(space(sets[name].features), space(decoded_test.features)) for name in made]
    result |= {
        "ratio": _over(distance, lowest),
        "excess": distance - lowest,
        "prior_gap": {**dict(zip(made, gaps, strict=True)), "ratio": _over(*gaps)},
    }
    if data.about.get("plane") in (None, "axial"):  # images are taken for axial, as nearly all are
        measured = {name: sets[name] for name in made} | {"decoded_test_slices": decoded_test, "test_slices": test}
        bar = tqdm(measured.items(), "anatomy", leave=False, disable=None)
        tables = {name: anatomy.measure(images.images, images.positions) for name, images in bar}
        result["anatomy"] = {
            name: anatomy.describe(table) | anatomy.distances(table, tables["test_slices"])
            for name, table in tables.items()
        }
    result["test_slices"] = {
        "number": len(test.images),
        "ms_ssim_diversity": diversity(test.images, test.positions, test.people, np.random.default_rng(0)),
    }
    groups = {"samples": samples, "test_slices": test.images, "reconstructions": decoded_test.images}
    result["copies"], closest = find_copies(groups, data)
    return result, closest


def _over(a, b):
    """a / b; None where b is not above 0."""
    return float(a / b) if b > 0 else None
