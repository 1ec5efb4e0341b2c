"""From a configuration to models, audits and comparisons: what the commands run."""
