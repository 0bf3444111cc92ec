"""Studies over many runs.

select.py   rank finished runs without labels, and whether the ranking agrees with accuracy
diff.py     what differs between two runs
runs.py     what is read of a run folder
"""
