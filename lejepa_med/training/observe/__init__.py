"""What a run observes about itself.

watch.py    the loop's link to all of this     verdict.py  records -> one sentence
sample.py   the fixed sample and its scores    spacing.py  when an evaluation is due
"""
