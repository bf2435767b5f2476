"""Verbs that show pages: a preview, a run in the browser, a human study."""
