"""Compare the two directories of a sync, and delete extra files."""
