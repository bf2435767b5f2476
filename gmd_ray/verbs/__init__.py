"""The functions behind `gmd-ray VERB`."""
