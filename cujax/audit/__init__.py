"""How well a model has forgotten: pure functions of logits and embeddings, one file a family of metrics.

An audit is empirical: it can show that something was not forgotten; it is no certificate that all of it was.
"""
