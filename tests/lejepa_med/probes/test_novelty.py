"""What a probe says of images that it learnt from, and of others of their groups."""

import json

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.metrics import confusion_matrix, mean_absolute_error, roc_auc_score

from lejepa_med.probes.examples import Labelled
from lejepa_med.probes.probe import Probe, fit_probe, most_uncertain, read_folder, write_folder


def patients(count=40, each=11, dim=200, seed=0):
    """Vectors with a signature of each patient, by which another image of the patient is known; the patients."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(count), each)
    vectors = rng.normal(size=(count, dim))[patient] * 3 + rng.normal(size=(count * each, dim)) * 0.3
    return vectors.astype(np.float32), patient


def labels_of(kind, patient, seed=1):
    """Labels that are the patient's and have nothing to do with the vectors."""
    rng = np.random.default_rng(seed)
    if kind == "regression":
        return rng.normal(60, 10, patient.max() + 1)[patient].tolist()
    marks = rng.permuted(np.tile(np.arange(patient.max() + 1) % 3, (3, 1)), axis=1) == 0
    if kind == "multilabel":
        return [[name for name, mark in zip("abc", marks[:, p], strict=True) if mark] for p in patient]
    return [f"c{p % 3}" for p in patient]


KINDS = ("classification", "multilabel", "regression")


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    """A probe of ten images of each patient, and all that it was made from; the eleventh is left out."""
    vectors, patient = patients()
    labels, used = labels_of(request.param, patient), np.arange(len(patient)) % 11 < 10
    ids, groups = [f"i{row}" for row in range(len(patient))], [f"p{p}" for p in patient]
    pick = lambda column: [value for value, take in zip(column, used, strict=True) if take]  # noqa: E731
    probe = fit_probe(vectors[used], pick(labels), pick(groups), ids=pick(ids))
    return probe, vectors, labels, ids, groups, used


def error(kind, found, truth):
    """Share of wrong labels, or the mean absolute error, of the linear probe and of the neighbours."""
    if kind == "regression":
        return [mean_absolute_error(truth, [getattr(p, name) for p in found]) for name in ("value", "knn_value")]
    names = ("label", "knn_label") if kind == "classification" else ("labels", "knn_labels")
    answers = [tuple(t) if kind == "multilabel" else t for t in truth]
    return [np.mean([getattr(p, name) != t for p, t in zip(found, answers, strict=True)]) for name in names]


@pytest.mark.parametrize("names", [True, False], ids=["by id", "by vector"])
def test_predictions_on_labelled_images_are_those_that_were_scored(case, names):
    probe, vectors, labels, ids, groups, used = case
    truth = [label for label, take in zip(labels, used, strict=True) if take]
    given = {"ids": list(np.array(ids)[used]), "groups": list(np.array(groups)[used])} if names else {}
    found = probe.predict(vectors[used], **given)
    assert {(p.seen, p.in_sample) for p in found} == {("record", False)}
    metrics = probe.metrics
    if probe.kind == "regression":
        for name, key in (("value", "linear"), ("knn_value", "knn")):
            assert mean_absolute_error(truth, [getattr(p, name) for p in found]) == pytest.approx(metrics[key]["mae"])
        held = [p.interval[0] <= t <= p.interval[1] for p, t in zip(found, truth, strict=True)]
        assert np.mean(held) == pytest.approx(metrics["interval"]["measured_coverage"])
    elif probe.kind == "classification":
        for name, key in (("label", "linear"), ("knn_label", "knn")):
            counts = confusion_matrix(truth, [getattr(p, name) for p in found])
            assert counts.tolist() == metrics[key]["confusion_matrix"]
        assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in found)
    else:
        marks, taken = (
            np.array([[name in given for name in "abc"] for given in column])
            for column in (truth, [p.labels for p in found])
        )
        f1 = 2 * (marks & taken).sum(0) / (marks.sum(0) + taken.sum(0))
        assert f1.mean() == pytest.approx(metrics["linear"]["macro_f1"])
        chances = np.array([[p.probabilities[name] for name in "abc"] for p in found])
        assert roc_auc_score(marks, chances) == pytest.approx(metrics["linear"]["auroc"])
    # as new as a new patient's images
    novelty = [p.novelty for p in found]
    assert 0.4 < np.mean(novelty) < 0.6 and min(novelty) < 0.05
    assert max(p.nearest_cosine for p in found) < 0.9


def test_other_images_of_labelled_groups_are_answered_without_their_group(case):
    probe, vectors, labels, ids, groups, used = case
    rest = ~used
    truth = [label for label, take in zip(labels, rest, strict=True) if take]
    fooled = probe.predict(vectors[rest])  # by vectors alone, nothing tells whose they are
    assert {p.seen for p in fooled} == {"no"}
    found = probe.predict(vectors[rest], ids=list(np.array(ids)[rest]), groups=list(np.array(groups)[rest]))
    assert {(p.seen, p.in_sample) for p in found} == {("group", False)}
    for bad, good in zip(error(probe.kind, fooled, truth), error(probe.kind, found, truth), strict=True):
        assert good > 1.5 * bad
    assert max(p.novelty for p in fooled) == 0 and np.mean([p.novelty for p in found]) > 0.4
    # all of what a prediction holds is what the part without the patient says
    fold = probe.held_out.fold[[list(probe.examples.groups).index(group) for group in np.array(groups)[rest]]]
    for row, number in enumerate(fold):
        head = probe.held_out.heads[number]
        assert found[row].uncertainty == pytest.approx(head.uncertainty(vectors[rest][row : row + 1])[0])
    strangers = probe.predict(vectors[rest], groups=[f"q{p}" for p in range(rest.sum())])
    assert strangers == fooled and probe.remarks(strangers) == []


def test_a_saved_probe_remembers_and_one_of_before_says_that_it_cannot(case, tmp_path):
    probe, vectors, _, ids, groups, _ = case
    probe.save(tmp_path / "p")
    loaded = Probe.load(tmp_path / "p")
    asked = {"ids": ids, "groups": groups}
    found = loaded.predict(vectors, **asked)
    assert found == probe.predict(vectors, **asked)
    assert loaded.remarks(found) == [
        "the probe learnt from 400 of these images (seen: record)",
        "40 other images are of groups that it learnt from (seen: group)",
        "440 predictions are made by the parts of the cross-validation that saw neither the image nor its group, and "
        "can be scored",
    ]
    # as a release without folds wrote it
    document, arrays = read_folder(tmp_path / "p")
    arrays = {name: values for name, values in arrays.items() if not name.startswith("fold")}
    old = {name: value for name, value in document.items() if name not in ("held_out", "format", "arrays_sha256")}
    old["examples"] = {name: old["examples"][name] for name in ("ids", "labels", "groups")}
    write_folder(tmp_path / "p", old, arrays)
    older = Probe.load(tmp_path / "p")
    found = older.predict(vectors, **asked)
    assert {(p.seen, p.in_sample) for p in found} == {("record", True), ("group", True)}
    last = older.remarks(found)[-1]
    assert last.startswith("440 predictions are in-sample") and "earlier release" in last and "Train it again" in last
    strangers = np.random.default_rng(3).normal(size=(5, probe.dim))
    assert older.predict(strangers) == probe.predict(strangers)


def test_folds_add_little_to_the_folder(case, tmp_path):
    probe = case[0]
    probe.save(tmp_path / "p")
    arrays = load((tmp_path / "p" / "probe.safetensors").read_bytes())
    folds = sum(values.nbytes for name, values in arrays.items() if name.startswith("fold"))
    heads = sum(values.nbytes for name, values in arrays.items() if name.startswith("head."))
    assert folds < 5 * (heads + 4 * 400) + 8 * 400 + 1000  # a head and a scale of novelty each; never the vectors again
    assert len(save(arrays)) < 2.2 * probe.examples.vectors.nbytes


def test_without_folds_predictions_are_in_sample_and_marked():
    vectors, patient = patients(4, 5)
    labels, groups = [f"c{p % 2}" for p in patient], ["one"] * 15 + ["two"] * 5
    probe = fit_probe(vectors, labels, groups)
    assert probe.metrics["folds"] == 0
    found = probe.predict(np.concatenate([vectors, -vectors[:1], -vectors[:1]]), groups=[*groups, "two", "new"])
    assert [(p.seen, p.in_sample) for p in found] == [*[("record", True)] * 20, ("group", True), ("no", False)]
    assert "too few groups allowed no cross-validation" in probe.remarks(found)[-1]
    assert not any("can be scored" in remark for remark in probe.remarks(found))


def test_equal_images_in_several_folds_are_in_sample():
    vectors, patient = patients()
    vectors[12], vectors[24] = vectors[0], vectors[0]  # three patients
    groups = [f"p{p}" for p in patient]
    probe = fit_probe(vectors, labels_of("classification", patient), groups)
    fold = probe.held_out.fold
    assert len({fold[0], fold[12], fold[24]}) > 1
    found = probe.predict(vectors, ids=[str(row) for row in range(440)], groups=groups)
    assert [row for row, p in enumerate(found) if p.in_sample] == [0, 12, 24]
    assert "an equal image" in probe.remarks(found)[-1]
    by_vector = probe.predict(vectors[:1], groups=["somebody else"])[0]
    assert (by_vector.seen, by_vector.in_sample) == ("record", True)


def test_an_image_is_found_again_by_a_vector_that_was_computed_anew():
    vectors, patient = patients()
    vectors += 30  # far from the origin, as embeddings may lie: cosines are then all alike
    probe = fit_probe(vectors, labels_of("regression", patient), [f"p{p}" for p in patient])
    noise = np.random.default_rng(0).normal(size=vectors.shape)
    anew = vectors * (1 + 1e-6 * noise)
    assert {p.seen for p in probe.predict(anew)} == {"record"}
    assert {p.seen for p in probe.predict(vectors + 0.01 * noise)} == {"no"}


def test_groups_of_the_table_and_images_without_a_label_count():
    """Labels that come with groups of their own: the table's hold as well, and so do those of rows without a label."""
    vectors, patient = patients(12, 4)
    kinds, rows = labels_of("classification", patient), np.arange(48) % 4 < 2
    ids, groups = [f"i{k}" for k in range(48)], [f"p{p}" for p in patient]
    table_groups = [f"t{k // 2}" for k in range(48)]  # half a patient
    pick = lambda column: [value for value, take in zip(column, rows, strict=True) if take]  # noqa: E731
    relatives = {ids[k]: groups[k] for k in range(48) if k % 4 == 2} | {"elsewhere": "nobody"}
    probe = fit_probe(
        vectors[rows],
        pick(kinds),
        pick(groups),
        ids=pick(ids),
        table_groups=pick(table_groups),
        relatives=relatives,
    )
    assert "elsewhere" not in probe.examples.relatives and len(probe.examples.relatives) == 12
    found = probe.predict(vectors, ids=ids, groups=table_groups)
    assert [p.seen for p in found] == ["record", "record", "group", "no"] * 12
    assert not any(p.in_sample for p in found)
    # a group of the table whose images the labels parted over the folds has no part without it
    coarse = fit_probe(vectors, kinds, groups, table_groups=["ward 1"] * 24 + ["ward 2"] * 24)
    found = coarse.predict(-vectors[:2], groups=["ward 1", "p3"])
    assert [(p.seen, p.in_sample) for p in found] == [("group", True), ("group", False)]
    both = probe.examples.updated(coarse.examples)
    assert both.table_groups == (*probe.examples.table_groups, *coarse.examples.table_groups)
    assert both.relatives == probe.examples.relatives
    alone = Labelled(("a",), vectors[:1], ("c0",), ("g",))
    assert alone.updated(Labelled(("b",), vectors[1:2], ("c1",), ("h",))).table_groups == ()


def test_ids_of_the_service_are_found_in_other_tables_of_the_archive():
    vectors, patient = patients(10, 4)
    ids = [f"{row:032x}" for row in range(40)]
    probe = fit_probe(
        vectors, labels_of("classification", patient), [f"p{p}" for p in patient], ids=[f"ward-3/{i}" for i in ids]
    )
    other = np.random.default_rng(5).normal(size=vectors.shape)
    assert {p.seen for p in probe.predict(other, ids=ids)} == {"record"}
    assert {p.seen for p in probe.predict(other, ids=[f"{row + 99:032x}" for row in range(40)])} == {"no"}
    assert most_uncertain(probe, other, ids, limit=5) == []


def test_what_to_label_next_goes_by_the_same_uncertainty(case):
    probe, vectors, _, ids, groups, _ = case
    found = most_uncertain(probe, vectors, ids, limit=10, groups=groups)
    assert found and all(candidate.row % 11 == 10 for candidate in found)
    rows = [candidate.row for candidate in found]
    said = probe.predict(vectors[rows], ids=[ids[row] for row in rows], groups=[groups[row] for row in rows])
    assert [p.uncertainty for p in said] == pytest.approx([candidate.uncertainty for candidate in found])


def test_a_label_too_rare_for_a_score_has_a_chance_in_each_fold():
    vectors, patient = patients()
    labels = labels_of("multilabel", patient)
    rare = [[*given, "d"] if p in (0, 1) else given for given, p in zip(labels, patient, strict=True)]
    probe = fit_probe(vectors, rare, [f"p{p}" for p in patient])
    assert "d" not in probe.metrics["linear"]["labels"]
    found = probe.predict(vectors)
    chances = np.array([p.probabilities["d"] for p in found])
    assert (chances[patient < 2] < 0.5).all() and ((chances > 0) & (chances < 1)).all()
    assert json.dumps([p.probabilities for p in found], allow_nan=False)
