"""Inspect a data set and propose the models that fit it, with their flags.

A sample of the rows (``sampling``) becomes columns of known kinds (``kinds``), and these become
proposals: ``ranking`` predicts a label, ``recall`` finds items, nodes or documents.
"""
