"""One image file: its format, how it is opened, decoded, color-managed and encoded."""
