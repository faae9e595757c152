"""The backends, their contract (`base`), and the registry that finds them (`registry`)."""
