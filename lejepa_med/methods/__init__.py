"""Pretraining methods: each is a folder with its settings, its heads and its loss, found by `registry`.

settings.py   what a method declares (no PyTorch: the command line lists it)
base.py       the module that is trained, and the heads and terms that methods share
registry.py   methods by name
"""
