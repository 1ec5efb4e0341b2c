"""Measures how well a model has forgotten: pure functions of logits and embeddings, one file per metric family.

An audit is empirical: it can show that something was not forgotten. It is not a certificate that all of it was.
"""
