"""The sections of the settings, as dataclasses; every field is declared once, with `setting` or `section`."""
