"""Image files, and how many visual tokens an image takes: sizes and integers, no model."""
