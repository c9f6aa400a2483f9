"""What a word of a text is, and how alike two texts are: rules on plain text that need no data and no model."""
