"""Move files over a connection with random faults: ``make soak``."""
