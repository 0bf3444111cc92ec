"""Odd images, copies across groups, marked or empty pictures and doubtful labels, found in an embedding table.

No labels are needed for the first three. Each image gets a score of each kind without ties, so a person can look at the
worst ones first and stop where they look right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from data_adapters.tables import count
from lejepa_med.errors import UserError
from lejepa_med.models.thumbnails import Thumbnails
from lejepa_med.probes.confounders import Value
from lejepa_med.probes.linear import blas_threads
from lejepa_med.probes.neighbours import nearest_elsewhere, normalise
from lejepa_med.probes.probe import Probe

Kind = Literal["odd", "copy", "layout", "label", "marked", "empty", "header"]
KINDS: dict[Kind, str] = {
    "copy": "copies across groups",
    "odd": "odd images",
    "layout": "pictures of another layout",
    "marked": "pen marks and artefacts",
    "empty": "empty images",
    "header": "unusual headers",
    "label": "doubtful labels",
}
NEIGHBOURS = 5  # of other groups, whose mean distance says how odd an image is
SIGNATURE = 32  # pixels of the square that two pictures are compared by
ALIKE = 20  # pictures of other groups: more than a few wrong ones, which are like each other
SAME_LAYOUT = 0.5  # usual correlation with these from which an archive has one layout: heads have, tissue has not
COPY = 0.97  # correlation of two pictures, at any quarter turn or mirroring, from which one is a copy of the other
BLOCK = 2_000_000  # correlations held at once
MARKED = 0.02  # share of a picture in colours that neither stain nor sky nor grey anatomy has
FLAT = 0.02  # standard deviation of the grey values, 0 .. 1, below which a picture is empty
RARE_HEADER = 0.02  # share of the images below which a header value is unusual, where nearly all have one other value
COMMON_HEADER = 0.9
SHARE = 0.01  # of the images that are listed as odd


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """One image to look at.

    Attributes:
        kind: why.
        row: of the table.
        score: 0 .. 1 within the kind; 1 is the most suspicious.
        reason: a sentence.
        other: the row that it is a copy of.
        suggested: the class that the probe believes in.
    """

    kind: Kind
    row: int
    score: float
    reason: str
    other: int | None = None
    suggested: str | None = None


@dataclass(frozen=True)
class Pictures:
    """What quality control needs of the thumbnails.

    Attributes:
        signatures: (n, `SIGNATURE`, `SIGNATURE`) float32: grey, without slow gradients, of mean 0 and length 1.
        layouts: the same of what lies inside the box around the foreground, so that place and size do not count.
        contrast: (n,) standard deviation of the grey values, 0 .. 1.
        ink: (n,) share of the pixels in colours of pens, 0 where the archive is grey.
        is_colour: whether the archive has colours at all.
    """

    signatures: NDArray[np.float32]
    layouts: NDArray[np.float32]
    contrast: NDArray[np.float64]
    ink: NDArray[np.float64]
    is_colour: bool


def describe_pictures(
    pictures: Sequence[bytes] | Thumbnails, *, progress: Callable[[int, int], None] | None = None
) -> Pictures:
    """Measure encoded thumbnails (WebP, PNG or JPEG), one at a time, so that a mapped file stays on the disk."""
    signatures = np.zeros((len(pictures), SIGNATURE, SIGNATURE), np.float32)
    layouts = np.zeros_like(signatures)
    contrast, ink, colour = np.zeros(len(pictures)), np.zeros(len(pictures)), np.zeros(len(pictures))
    for row in range(len(pictures)):
        image = cv2.imdecode(np.frombuffer(pictures[row], np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            continue
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32) / 255
        signatures[row], layouts[row] = signature(grey), signature(foreground(grey))
        contrast[row], ink[row], colour[row] = float(grey.std()), ink_share(image), float(np.ptp(image, axis=2).mean())
        if progress is not None and row % 100 == 0:
            progress(row, len(pictures))
    return Pictures(signatures, layouts, contrast, ink, bool(np.median(colour) > 3))


def signature(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a picture (H, W) as a square of mean 0 and length 1, without slow gradients, which many pictures share."""
    small = cv2.resize(grey, (SIGNATURE, SIGNATURE), interpolation=cv2.INTER_AREA)
    fine = small - cv2.GaussianBlur(small, (0, 0), SIGNATURE / 8)
    fine -= fine.mean()
    length = float(np.linalg.norm(fine))
    return np.asarray(fine / length if length > 1e-4 else fine * 0, dtype=np.float32)


def foreground(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the part of a picture (H, W) in the box that holds what is brighter than its background."""
    rows, columns = np.nonzero(grey > 0.15 * np.percentile(grey, 99))
    if len(rows) < 10:
        return grey
    top, bottom = np.percentile(rows, [1, 99]).astype(int)
    left, right = np.percentile(columns, [1, 99]).astype(int)
    return grey[top : bottom + 1, left : right + 1]


def ink_share(image: NDArray[np.uint8]) -> float:
    """Return the share of a picture (H, W, 3), BGR, in colours of pens: yellow, green, cyan, blue, neutral black.

    Haematoxylin and eosin lie between violet and red (hue 260 to 350 degrees); ink lies elsewhere, and is saturated.
    """
    hue, saturation, value = np.moveaxis(cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int32), 2, 0)
    is_foreign = (hue >= 20) & (hue <= 118) & (saturation > 80) & (value > 40)  # OpenCV's hue is half of the degrees
    is_neutral = np.ptp(image.astype(np.int32), axis=2) < 25  # dark nuclei have a colour, ink has none
    is_black = (value < 50) & is_neutral & (float(np.median(value)) > 80)  # a dark sky is no ink
    return float((is_foreign | is_black).mean())


def find_odd(vectors: NDArray[Any], groups: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how odd each image is: the mean distance to the nearest ones of other groups, and a p-value, (n,) each.

    Images of one patient are alike, so only other groups tell. The p-value is the share of the images, each group
    counting once, that are as far: a patient with many images does not set the scale alone. Distances are real numbers,
    so the ranks have no ties but those of equal images.
    """
    unit = normalise(vectors)
    sizes = np.bincount(groups)
    alone = len(sizes) == 1
    codes = np.arange(len(unit)) if alone else groups
    k = min(NEIGHBOURS, len(unit) - (1 if alone else int(sizes.max())))
    indices, _ = nearest_elsewhere(unit, codes, k)
    # In double precision: cosines near 1 lose their last digits in float32, and with them the order.
    wide = unit.astype(np.float64)
    distance = np.mean([1 - (wide * wide[indices[:, place]]).sum(1) for place in range(k)], axis=0)
    weights = (1 / sizes)[groups]
    order = np.argsort(-distance, kind="stable")
    below = np.cumsum(weights[order]) / weights.sum()
    p = np.empty(len(unit))
    p[order] = below
    return distance, p


def find_layouts(layouts: NDArray[np.float32], groups: NDArray[np.int64]) -> tuple[NDArray[np.float64], bool]:
    """Return how unlike the other groups' pictures each one is laid out, (n,), and whether the archive has one layout.

    A wrong plane, orientation or part of the body is often a cluster of its own in the vectors: pictures of it are near
    each other. Here the 20 most similar pictures count, so that a few wrong ones do not vouch for each other. layouts:
    `Pictures.layouts`.
    """
    flat = layouts.reshape(len(groups), -1)
    k = min(ALIKE, len(groups) - int(np.bincount(groups).max()))
    if k < 1:
        return np.zeros(len(groups)), False
    _, cosines = nearest_elsewhere(np.ascontiguousarray(flat), groups, k)
    distance = 1 - cosines.astype(np.float64).mean(1)
    return distance, bool(np.median(distance) <= 1 - SAME_LAYOUT)


def find_copies(
    pictures: Pictures, groups: NDArray[np.int64], *, least: float = COPY, most: int = 10_000
) -> list[tuple[int, int, float]]:
    """Return pairs of pictures in different groups that are the same one: (row, earlier row, correlation), best first.

    A copy may be rescaled, re-encoded, of other brightness and contrast, turned by quarters or mirrored. Pictures
    without any detail are nobody's copies.
    """
    flat = pictures.signatures.reshape(len(groups), -1)
    there = np.flatnonzero((np.abs(flat).sum(1) > 0) & (pictures.contrast > FLAT))
    if not len(there):
        return []
    found: dict[tuple[int, int], float] = {}
    step = max(1, BLOCK // max(1, len(there)))
    for turned in _turns(pictures.signatures[there]):
        own = np.ascontiguousarray(turned.reshape(len(there), -1))
        for start in range(0, len(there), step):
            block = own[start : start + step] @ flat[there].T
            for a, b in zip(*np.nonzero(block >= least), strict=True):
                first, second = sorted((int(there[start + a]), int(there[b])))
                if first != second and groups[first] != groups[second]:
                    pair = (second, first)
                    found[pair] = max(found.get(pair, 0.0), float(block[a, b]))
    return [(row, other, score) for (row, other), score in sorted(found.items(), key=lambda one: -one[1])][:most]


def _turns(squares: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [np.rot90(side, turns, axes=(1, 2)) for side in (squares, squares[:, :, ::-1]) for turns in range(4)]


def find_doubtful_labels(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """Return suspected wrong labels by confident learning (Northcutt, Jiang and Chuang 2021, JAIR 70, section 3).

    The threshold of a class is its mean probability over the images labelled so. An image whose label is i counts as
    class j where j is the most probable of the classes that reach their threshold.

    Args:
        probabilities: (n, classes), of probes that have not seen the image.
        labels: (n,) codes.

    Returns:
        Which images count as another class, (n,); the most probable other class, (n,); and p(other) - p(label), (n,),
        by which they are ranked.
    """
    classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == k, k].mean() if (labels == k).any() else 2 for k in range(classes)])
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    counted = np.where(confident.max(1) >= 0, confident.argmax(1), labels)
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -1
    best = others.argmax(1)
    margin = others[rows, best] - probabilities[rows, labels]
    return counted != labels, np.where(counted != labels, counted, best), margin


def find_outliers(
    vectors: NDArray[Any],
    groups: Sequence[str],
    *,
    ids: Sequence[str],
    pictures: Pictures | None = None,
    columns: Mapping[str, Sequence[Value]] | None = None,
    probe: Probe | None = None,
    share: float = SHARE,
) -> list[Suspect]:
    """Return what a person should look at, by kind and the most suspicious first.

    Args:
        vectors: (n, dim), of one encoder.
        groups: patient, slide or field of each, (n,).
        ids: (n,), by which a probe knows its examples.
        pictures: of all images; None: nothing is found by pictures.
        columns: facts of headers, (n,) values by name.
        probe: a classification probe of the same encoder, whose cross-validation doubts labels.
        share: of the images that are listed as odd, 0 .. 1.

    Raises:
        UserError: fewer than three images, or a probe that cannot doubt labels.
    """
    if len(vectors) < 3:
        raise UserError(
            f"There are {count(len(vectors), 'image')}: too few to say which one is odd.", remedy="Embed three or more."
        )
    codes = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)
    with blas_threads(np.size(vectors)):
        found = _odd(vectors, codes, share)
        if pictures is not None:
            found += _layouts(pictures, codes, share) + _copies(pictures, codes) + _marked(pictures) + _empty(pictures)
        found += _headers(columns or {}, len(codes))
        if probe is not None:
            found += _labels(probe, ids)
    return found


def _odd(vectors: NDArray[Any], groups: NDArray[np.int64], share: float) -> list[Suspect]:
    distance, p = find_odd(vectors, groups)
    order = np.argsort(-distance, kind="stable")[: max(1, round(share * len(groups)))]
    usual = float(np.median(distance))
    return [
        Suspect(
            kind="odd",
            row=row,
            score=float(1 - p[row]),
            reason=f"Far from all images of other groups: distance {distance[row]:.3f}, usual {usual:.3f}.",
        )
        for row in order.tolist()
    ]


def _layouts(pictures: Pictures, groups: NDArray[np.int64], share: float) -> list[Suspect]:
    distance, is_one = find_layouts(pictures.layouts, groups)
    if not is_one:
        return []
    order = np.argsort(-distance, kind="stable")[: max(1, round(share * len(groups)))]
    usual = float(np.median(distance))
    return [
        Suspect(
            kind="layout",
            row=row,
            score=float(np.clip(distance[row], 0, 1)),
            reason=f"Laid out unlike the pictures of other groups (correlation {1 - distance[row]:.2f}, usual "
            f"{1 - usual:.2f}): another plane, orientation, sequence or part?",
        )
        for row in order.tolist()
    ]


def _copies(pictures: Pictures, groups: NDArray[np.int64]) -> list[Suspect]:
    return [
        Suspect(
            kind="copy",
            row=row,
            other=other,
            score=score,
            reason=f"The same picture as one of another group (correlation {score:.3f}). Give both one group, or "
            "exclude one.",
        )
        for row, other, score in find_copies(pictures, groups)
    ]


def _marked(pictures: Pictures) -> list[Suspect]:
    if not pictures.is_colour:
        return []
    usual = float(np.median(pictures.ink))
    # Where most pictures have such colours, as skies have, they are no ink.
    if usual > MARKED:
        return []
    bar = max(MARKED, usual + 10 * float(np.median(np.abs(pictures.ink - usual))))
    rows = np.flatnonzero(pictures.ink > bar)
    order = rows[np.argsort(-pictures.ink[rows], kind="stable")]
    return [
        Suspect(
            kind="marked",
            row=row,
            score=float(pictures.ink[row]),
            reason=f"{pictures.ink[row]:.0%} of the picture has the colours of a pen or an artefact.",
        )
        for row in order.tolist()
    ]


def _empty(pictures: Pictures) -> list[Suspect]:
    rows = np.flatnonzero(pictures.contrast <= FLAT)
    return [
        Suspect(
            kind="empty",
            row=row,
            score=float(1 - pictures.contrast[row]),
            reason=f"Hardly any contrast: standard deviation {pictures.contrast[row]:.3f} of the grey values.",
        )
        for row in rows[np.argsort(pictures.contrast[rows], kind="stable")].tolist()
    ]


def _headers(columns: Mapping[str, Sequence[Value]], images: int) -> list[Suspect]:
    """Images whose header has another value than nearly all: a wrong sequence, plane, size or scanner."""
    found = []
    for name, values in columns.items():
        texts = [f"{value:g}" if isinstance(value, float) else str(value or "") for value in values]
        names, codes, counts = np.unique(np.array(texts), return_inverse=True, return_counts=True)
        usual = int(counts.argmax())
        if counts[usual] < COMMON_HEADER * images or not names[usual]:
            continue
        for row in np.flatnonzero(counts[codes] <= max(1, RARE_HEADER * images)).tolist():
            if texts[row]:
                rarity = float(1 - counts[codes[row]] / images)
                reason = f"{name} is {texts[row]}; {counts[usual] / images:.0%} of the images have {names[usual]}."
                found.append(Suspect(kind="header", row=row, score=rarity, reason=reason))
    return sorted(found, key=lambda one: -one.score)


def _labels(probe: Probe, ids: Sequence[str]) -> list[Suspect]:
    if probe.kind != "classification" or probe.held_out is None:
        cause = "is no classification" if probe.kind != "classification" else "could not be cross-validated"
        raise UserError(
            f"The probe {cause}, so it cannot doubt labels.",
            remedy="Give a probe of classes, with every class in several groups.",
        )
    known = probe.examples
    answers = probe.predict(known.vectors, ids=known.ids, groups=known.groups)
    probabilities = np.array([[(one.probabilities or {})[name] for name in probe.classes] for one in answers])
    place = {name: number for number, name in enumerate(probe.classes)}
    wrong, other, margin = find_doubtful_labels(probabilities, np.array([place[str(v)] for v in known.labels]))
    rows = {name.rpartition("/")[2]: row for row, name in enumerate(ids)}
    found = []
    for number in np.argsort(-margin, kind="stable").tolist():
        row = rows.get(known.ids[number].rpartition("/")[2])
        if not wrong[number] or row is None or answers[number].in_sample:
            continue
        suggested = probe.classes[other[number]]
        chance = probabilities[number, other[number]]
        reason = f"Labelled '{known.labels[number]}'; a probe that has not seen it says '{suggested}' ({chance:.0%})."
        score = float((1 + margin[number]) / 2)
        found.append(Suspect(kind="label", row=row, score=score, reason=reason, suggested=suggested))
    return found
