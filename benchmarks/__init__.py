"""Speed, memory and import cost beside what a user would pick instead. Run with ``make bench``."""
