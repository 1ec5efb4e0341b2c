"""What was found, for people: tables, pages and figures."""
