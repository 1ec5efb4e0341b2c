"""Files on disk: checkpoints with digests, progress, metrics, and the folder of a run."""
