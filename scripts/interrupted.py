"""Imported first by scripts that are no command: says in a sentence that one was interrupted before it began."""

from cujax.commands import end_while_importing

end_while_importing()
