"""Training and evaluation, run from the repository's root; never installed.

``python -m training.train RECIPE`` → checkpoint; ``python -m training.evaluate`` → figures and model card.
"""
