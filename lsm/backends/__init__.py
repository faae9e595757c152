"""The backends, their contract (`base`) and how they are found (`registry`)."""
