"""The families of FLUX: for each a description and an injecting model; everything else of the teacher they share."""
