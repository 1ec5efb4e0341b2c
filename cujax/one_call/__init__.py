"""One call from arrays to an unlearned model, and one to audit it: `cujax.unlearn` and `cujax.audit_model`."""
