"""Probes on frozen embeddings: fitted, cross-validated by group, saved and applied. scikit-learn inside.

probe.py             fit, predict, save, load; what to label next
classification.py    multilabel.py    regression.py    the three kinds of probes: their heads, fits and scores
linear.py            logistic and ridge regression on standardised vectors
cross_validation.py  folds by group, nested cross-validation, the interface of a kind
calibration.py       scores.py        probabilities that hold; scores with intervals over groups
neighbours.py        novelty.py       k-NN; what a probe has seen, and what is unlike all of it
examples.py          label_table.py   labelled vectors, their checks and warnings; labels from a table
output.py            fewshot.py       scores and predictions for people; quality at 10, 50 and all labels
"""
