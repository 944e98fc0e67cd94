"""One file per rival."""
