"""Move files for a long time over a connection that fails at random: ``make soak``."""
