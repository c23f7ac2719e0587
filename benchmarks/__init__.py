"""Measure speed, memory and import cost beside other clients.

Run with ``make bench``.
"""
