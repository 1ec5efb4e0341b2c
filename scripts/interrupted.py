"""Imported first by scripts that are not commands: prints a message if one is interrupted before it began."""

from cujax.commands import end_while_importing

end_while_importing()
