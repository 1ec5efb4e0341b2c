"""One call from arrays to an unlearned model, and one that audits it: `cujax.unlearn` and `cujax.audit_model`."""
